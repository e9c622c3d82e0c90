"""Means over the tokens that count."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops._checks import bool_mask, first_place


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the values where a mask is set.

    Args:
        values: (...).
        mask: bool or numbers of 0 and 1 (...); None keeps all.

    Returns:
        A scalar. What a masked value is, nan even, does not matter.

    Raises:
        InputError: another shape, other numbers, or nothing that counts, which compiled graphs do not see.
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
        InputError: another shape, other numbers, or nothing that counts, which compiled graphs do not see.
    """
    if mask is None:
        kept = torch.ones(shape, dtype=torch.bool, device=device)
    elif mask.shape != shape:
        raise InputError(f"mask must be {tuple(shape)} for these tokens, got {tuple(mask.shape)}")
    else:
        kept = bool_mask("mask", mask)
    if not torch.compiler.is_compiling() and not kept.any():
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


def can_look(values: Tensor) -> bool:
    """Whether to look for values that mean nothing: where it makes nobody wait and breaks no graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_logits(found: Tensor, kept: Tensor, logits: Mapping[str, Tensor]) -> None:
    """Refuse logits that are no distribution, by what was computed of them: only for a cause they are read.

    Args:
        found: (...) of every token; nan where a row of logits is no distribution.
        kept: bool (...): tokens that count.
        logits: (..., vocab) by the name of the argument.

    Raises:
        InputError: nan, inf or nothing but -inf among a token's logits; looked for on the CPU alone.
    """
    if not can_look(found):
        return
    unknown = kept & found.detach().isnan()
    if not unknown.any():
        return
    first = tuple(unknown.nonzero()[0].tolist())
    for name, values in logits.items():
        row = values.detach()[first]
        if not row.amax().isfinite():
            raise InputError(
                f"{name} must be finite, or -inf for some tokens, got nan, inf or nothing but -inf at "
                f"{first_place(unknown)}"
            )
