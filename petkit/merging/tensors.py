"""One tensor merged: chosen, combined piece by piece, and seen to be finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.merging.combining import Chosen, Method
from petkit.merging.parameters import Values
from petkit.merging.slices import Piece, Slices
from petkit.ops.finite_rows import finite_rows


def merged_pieces(
    method: Method,
    slices: Slices,
    values: Values,
    surveyed: Any,
    dtype: torch.dtype,
    following: Slices | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The merged numbers of a tensor, with the place of the first of each piece.

    Args:
        method: that merges.
        slices: the tensor in all models.
        values: of its parameters.
        surveyed: what the method found out of all tensors.
        dtype: of the result.
        following: the tensor that comes after this one, whose reading may begin.

    Yields:
        Places and numbers, in order; they stay as they are when the next are made.

    Raises:
        InputError: a model's number is not finite, or the result is not; names the tensor.
    """
    if slices.count == 0:
        return
    chosen = method.choose(slices, values, surveyed, dtype)
    for piece in _read(slices, chosen):
        if chosen.in_pieces and following is not None and piece.start + piece.models.shape[1] == slices.count:
            following.begin(chosen.size)
        if chosen.drops:
            check_finite(slices, piece)
        merged = _own(chosen.combine(piece).to(dtype), piece)
        if not bool(finite_rows(merged[None]).all()):
            check_finite(slices, piece)
            raise InputError(f"{slices.name} is not finite when it is merged in {dtype}: use a wider dtype")
        yield piece.start, merged


def _read(slices: Slices, chosen: Chosen) -> Iterable[Piece]:
    if not chosen.in_pieces:
        return [slices.whole()]
    return slices if chosen.size is None else slices.pieces(chosen.size)


def _own(merged: Tensor, piece: Piece) -> Tensor:
    """A copy of what would be overwritten by the next piece."""
    is_shared = merged.untyped_storage().data_ptr() == piece.models.untyped_storage().data_ptr()
    return merged.clone() if is_shared else merged


def merged_tensor(
    method: Method, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype
) -> Tensor:
    """The merged numbers of a tensor, flat; see `merged_pieces`."""
    found = torch.empty(slices.count, dtype=dtype)
    for start, piece in merged_pieces(method, slices, values, surveyed, dtype):
        found[start : start + len(piece)] = piece
    return found


def check_finite(slices: Slices, piece: Piece) -> None:
    """Refuse numbers of a model that are not finite.

    Raises:
        InputError: names the tensor and the model.
    """
    good = finite_rows(piece.models).tolist()
    readings = [*slices.models]
    if piece.base is not None and slices.base is not None:
        good += finite_rows(piece.base[None]).tolist()
        readings.append(slices.base)
    for reading, is_good in zip(readings, good, strict=True):
        if not is_good:
            raise InputError(
                f"{reading.source.name} must hold finite numbers, {reading.tensor} holds nan or inf"
            )
