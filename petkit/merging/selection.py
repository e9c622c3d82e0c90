"""The k-th magnitude of many numbers, found by counting, without sorting them or holding them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from petkit.merging.slices import Piece
from petkit.ops.magnitude_counts import magnitude_counts

Pass = Callable[[], Iterable[Piece]]


def kth_magnitudes(read: Pass, ranks: Tensor) -> Tensor:
    """The k-th smallest magnitude of each model's differences to the base.

    Args:
        read: gives all pieces; it is called twice.
        ranks: int64 (n,), k of each model, 1 to the number of differences.

    Returns:
        float64 (n,): the magnitudes, exactly.

    Source:
        Selection by radix over the upper and the lower 16 bits of float32.
    """
    upper, before = _place(_counted(read, None), ranks)
    lower, _ = _place(_counted(read, upper), ranks - before)
    bits = (upper << 16) | lower
    return bits.to(torch.int32).view(torch.float32).double()


def thresholds(read: Pass, count: int, densities: list[float]) -> Tensor:
    """The magnitude from which on a share of each model's differences is kept.

    Args:
        read: gives all pieces.
        count: of a model's numbers in them.
        densities: share of the largest to keep, 0 to 1.

    Returns:
        float64 (n,). Differences of exactly that magnitude are all kept, so that the share may be larger;
        0 keeps all and infinity none.
    """
    kept = [min(count, max(0, math.floor(density * count))) for density in densities]
    ranks = torch.tensor([max(1, min(count, count - own + 1)) for own in kept])
    found = kth_magnitudes(read, ranks)
    for i, own in enumerate(kept):
        if own == count:
            found[i] = 0.0
        elif own == 0:
            found[i] = math.inf
    return found


def _counted(read: Pass, prefix: Tensor | None) -> Tensor:
    total: Tensor | None = None
    for piece in read():
        assert piece.base is not None
        found = magnitude_counts(piece.base, piece.models, prefix)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def _place(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """The bin that holds the k-th number of each row, and how many are in the bins before it."""
    sums = counts.cumsum(1)
    place = torch.searchsorted(sums, ranks[:, None]).squeeze(1)
    before = torch.where(place > 0, sums.gather(1, (place - 1).clamp_min(0)[:, None]).squeeze(1), 0)
    return place, before
