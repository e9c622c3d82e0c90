"""Checks of what is given to a CRF. Batch comes first here; messages tell shapes as the user gave them.

What depends on values is checked on the CPU only: reading a GPU would stall it, and a trace has no values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.errors import InputError

REDUCTIONS = ("sum", "mean", "token_mean", "none")


def readable(tensor: Tensor) -> bool:
    """Whether values can be looked at for free."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_emissions(emissions: Tensor, num_tags: int, axes: str) -> None:
    """Refuse what is not (batch, time, tags) of this many tags."""
    if not isinstance(emissions, Tensor):
        raise InputError(f"emissions must be a tensor, got {type(emissions).__name__}; use torch.tensor")
    if emissions.dim() != 3 or emissions.shape[2] != num_tags:
        raise InputError(
            f"emissions must be ({axes}, tags) with {num_tags} tags, got {tuple(emissions.shape)}"
        )
    if not emissions.is_floating_point():
        raise InputError(
            f"emissions must be float32, float64, bfloat16 or float16, got {emissions.dtype}; "
            "use emissions.float()"
        )


def check_like_emissions(name: str, tensor: Tensor, emissions: Tensor, axes: str) -> None:
    """Refuse a tensor whose first axes are not those of the emissions."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(tensor).__name__}; use torch.tensor")
    if tensor.device != emissions.device:
        raise InputError(f"{name} must be on {emissions.device} like emissions, got {tensor.device}")
    expected = tuple(emissions.shape[:2])
    if tensor.shape[:2] != expected or tensor.dim() < 2:
        hint = f"; batch_first={axes.startswith('time')} takes the other order of axes"
        swapped = tuple(tensor.shape[:2]) == expected[::-1]
        raise InputError(
            f"{name} must be ({axes}) = {expected} like emissions, "
            f"got {tuple(tensor.shape)}{hint if swapped else ''}"
        )


def check_mask_dtype(mask: Tensor) -> None:
    """Refuse a mask of another dtype than bool and integers, or with more axes than batch and time."""
    if mask.dim() != 2:
        raise InputError(f"mask must have 2 axes, batch and time, got {tuple(mask.shape)}")
    if mask.is_floating_point() or mask.is_complex():
        raise InputError(
            f"mask must be bool or integer, set where a tag is, got {mask.dtype}; use mask.bool()"
        )


def check_starts(mask: Tensor) -> None:
    """Refuse a row of a bool mask (batch, time) whose first position is not set."""
    if mask.shape[1] == 0 or not readable(mask) or bool(mask[:, 0].all()):
        return
    row = int(mask[:, 0].logical_not().nonzero()[0])
    what = "is not set at time 0" if mask[row].any() else "is set nowhere"
    raise InputError(
        f"mask must be set at the first position of every sequence, but that of batch {row} {what}: "
        "move the sequence to time 0, or leave it out when it is empty"
    )


def check_tags(tags: Tensor, mask: Tensor, num_tags: int) -> None:
    """Refuse what is not integer (batch, time), and a tag out of range at a set position."""
    if tags.dim() != 2 or tags.is_floating_point() or tags.is_complex() or tags.dtype == torch.bool:
        raise InputError(
            "tags must be integers with axes batch and time, or bool with a third axis of the allowed tags, "
            f"got {tags.dtype} {tuple(tags.shape)}"
        )
    if not readable(tags):
        return
    tags = tags.long()
    wrong = ((tags < 0) | (tags >= num_tags)) & mask
    if bool(wrong.any()):
        row, position = wrong.nonzero()[0].tolist()
        raise InputError(
            f"tags must be 0 to {num_tags - 1} for {num_tags} tags, got {int(tags[row, position])} at "
            f"batch {row}, time {position}: unset the mask where there is no tag"
        )


def check_allowed(allowed: Tensor, mask: Tensor, num_tags: int) -> None:
    """Refuse allowed tags (batch, time, tags) of another size, and a set position that allows none."""
    if allowed.shape[2] != num_tags:
        raise InputError(
            f"tags must be bool over {num_tags} tags on its last axis, got {tuple(allowed.shape)}"
        )
    if not readable(allowed):
        return
    wrong = mask & ~allowed.any(-1)
    if bool(wrong.any()):
        row, position = wrong.nonzero()[0].tolist()
        raise InputError(
            f"tags allow no tag at batch {row}, time {position}: "
            f"set all {num_tags} where the label is unknown"
        )


def check_something_counts(counted: Tensor) -> None:
    """Refuse a mean over tags that all have the weight 0."""
    if readable(counted) and not bool(counted.any()):
        raise InputError(
            "token_mean needs a tag whose weight is above 0, got none: it would be a mean over nothing"
        )


def check_weights(weights: Tensor, num_tags: int) -> None:
    """Refuse weights that are not one finite number of at least 0 for each tag."""
    if not isinstance(weights, Tensor) or not weights.is_floating_point() or weights.shape != (num_tags,):
        what = (
            f"{weights.dtype} {tuple(weights.shape)}"
            if isinstance(weights, Tensor)
            else type(weights).__name__
        )
        raise InputError(f"weights must be a float tensor ({num_tags},), one for each tag, got {what}")
    if readable(weights) and not bool(((weights >= 0) & weights.isfinite()).all()):
        tag = int(((weights >= 0) & weights.isfinite()).logical_not().nonzero()[0])
        raise InputError(f"weights must be finite and at least 0, got {float(weights[tag])} for tag {tag}")


def check_reduction(reduction: str, known: tuple[str, ...], mask: Tensor) -> None:
    """Refuse an unknown reduction, and a mean over a mask (batch, time) without anything, which is nan."""
    if reduction not in known:
        raise InputError(f"reduction must be one of {', '.join(known)}, got {reduction!r}")
    # A trace would bind what is exported to batches that are not empty.
    if reduction in ("none", "sum") or torch.compiler.is_compiling():
        return
    batch, time = mask.shape
    if batch == 0 or (time == 0 and reduction != "mean"):
        raise InputError(
            f"reduction {reduction} needs something to average, got batch {batch}, time {time}: leave the "
            "call out, or take sum or none"
        )
