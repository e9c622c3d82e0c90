"""What operators over rows of logits share: their masks, and gradients that take the logits' place."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops._checks import check_tensor


def row_mask(mask: Tensor | None, logits: Tensor) -> Tensor:
    """Turn a mask of positions into one of rows.

    Args:
        mask: bool or numbers of 0 and 1 (...); None keeps every row.
        logits: (..., vocab).

    Returns:
        bool (rows,), or an empty tensor where there was no mask.

    Raises:
        InputError: another shape.
    """
    if mask is None:
        return torch.empty(0, dtype=torch.bool, device=logits.device)
    check_tensor("mask", mask)
    if mask.shape != logits.shape[:-1]:
        raise InputError(
            f"mask must be {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}, got "
            f"{tuple(mask.shape)}"
        )
    return mask.to(torch.bool).reshape(-1)


def rows_of(name: str, logits: Tensor, overwrite: bool) -> Tensor:
    """View logits as rows.

    Args:
        name: of the logits, for messages.
        logits: (..., vocab).
        overwrite: whether the gradient is to take their place.

    Returns:
        (rows, vocab).

    Raises:
        InputError: no vocabulary, or logits that cannot be overwritten.
    """
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise InputError(f"{name} must be (..., vocab) with vocab >= 1, got {tuple(logits.shape)}")
    if overwrite and not logits.is_contiguous():
        raise InputError(
            f"{name} must be contiguous to be overwritten by its gradient, got strides {logits.stride()}"
        )
    if overwrite and logits.is_leaf and logits.requires_grad:
        raise InputError(
            f"{name} must come from a computation to be overwritten by its gradient, got a leaf, whose "
            "values the caller keeps"
        )
    return logits.reshape(-1, logits.shape[-1])
