"""Means over the tokens that count."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.errors import InputError


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the values where a mask is set.

    Args:
        values: (...).
        mask: bool or numbers of 0 and 1 (...); None keeps all.

    Returns:
        A scalar. What a masked value is, nan even, does not matter.

    Raises:
        InputError: another shape, or nothing that counts.
    """
    kept = token_mask(mask, values.shape, values.device)
    return torch.where(kept, values, 0.0).sum() / kept.sum()


def token_mask(mask: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    """Check a mask of tokens.

    Args:
        mask: bool or numbers of 0 and 1; None keeps all.
        shape: that it must have.
        device: of a mask that is made.

    Returns:
        bool, of the shape.

    Raises:
        InputError: another shape, or nothing that counts.
    """
    if mask is None:
        kept = torch.ones(shape, dtype=torch.bool, device=device)
    elif mask.shape != shape:
        raise InputError(f"mask must be {tuple(shape)} for these tokens, got {tuple(mask.shape)}")
    else:
        kept = mask.to(torch.bool)
    if not kept.any():
        raise InputError(
            f"a batch must hold at least one token that counts, got none of {kept.numel()}: is everything "
            "masked?"
        )
    return kept


def blank(values: Tensor, kept: Tensor) -> Tensor:
    """Put 0 where tokens do not count, so that what stands there, nan even, reaches no gradient.

    Args:
        values: of the mask's shape, with any further dimensions.
        kept: bool (...).

    Returns:
        Of the values' shape.
    """
    more = values.dim() - kept.dim()
    return torch.where(kept.reshape(*kept.shape, *[1] * more), values, 0.0)
