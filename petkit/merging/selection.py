"""The k-th magnitude of many numbers, exactly, without sorting them or holding them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from petkit.merging.sampling import bracket, magnitudes, sample
from petkit.merging.slices import Piece, Slices
from petkit.ops.magnitude_counts import magnitude_counts
from petkit.ops.magnitudes_within import magnitudes_within

Pass = Callable[[], Iterable[Piece]]

# Numbers of a model that are simply held.
FEW = 1 << 16
# Numbers of all models that are held where they lie near the wanted ones: 64 MiB, and a piece's.
LIMIT = 1 << 24


def kth_magnitudes(tensors: Sequence[Slices], ranks: Tensor) -> Tensor:
    """The k-th smallest magnitude of each model's differences to the base.

    Args:
        tensors: whose numbers are taken together; read once or, where a sample misleads, three times.
        ranks: int64 (n,), k of each model, 1 to the number of differences.

    Returns:
        float64 (n,): the magnitudes, exactly.
    """
    # Pieces that stay where they are need not be asked for again.
    held = list(tensors[0]) if len(tensors) == 1 and tensors[0].is_held else None

    def read() -> Iterable[Piece]:
        return chain.from_iterable(tensors) if held is None else held

    count = sum(one.count for one in tensors)
    if count <= FEW:
        rows = torch.cat([magnitudes(piece) for piece in read()], 1)
        return _vector([_kth(row, rank) for row, rank in zip(rows, ranks.tolist(), strict=True)])
    found = by_sample(read, sample(tensors, held), ranks, count)
    return by_counts(read, ranks) if found is None else found


def thresholds(tensors: Sequence[Slices], densities: list[float]) -> Tensor:
    """The magnitude from which on a share of each model's differences is kept.

    Args:
        tensors: whose numbers are taken together.
        densities: share of the largest to keep, 0 to 1.

    Returns:
        float64 (n,). Differences of exactly that magnitude are all kept, so that the share may be larger;
        0 keeps all and infinity none.
    """
    count = sum(one.count for one in tensors)
    kept = [min(count, max(0, math.floor(density * count))) for density in densities]
    found = [math.inf if own == 0 < count else 0.0 for own in kept]
    if any(0 < own < count for own in kept):
        ranks = torch.tensor([max(1, min(count, count - own + 1)) for own in kept])
        selected = kth_magnitudes(tensors, ranks).tolist()
        found = [one if 0 < own < count else end for one, own, end in zip(selected, kept, found, strict=True)]
    return _vector(found)


def by_sample(read: Pass, sampled: Tensor | None, ranks: Tensor, count: int) -> Tensor | None:
    """The k-th magnitudes from one pass over all numbers, around where a sample has them.

    Args:
        read: gives all pieces; it is called once.
        sampled: float32 (n, runs, numbers of a run).
        ranks: int64 (n,), k of each model.
        count: of a model's numbers.

    Returns:
        float64 (n,); None where one of them is somewhere else, or among too many.
    """
    wanted = ranks.tolist()
    found = [] if sampled is None else [bracket(*own, count) for own in zip(sampled, wanted, strict=True)]
    brackets = [one for one in found if one is not None]
    if len(brackets) < len(wanted) or sum(one.share for one in brackets) * count > LIMIT:
        return None
    low, high = [one.low for one in brackets], [one.high for one in brackets]
    within = _within(read, low, high)
    if within is None:
        return None
    places = [_placed(*own) for own in zip(wanted, low, high, *within, strict=True)]
    exact = [one for one in places if one is not None]
    return _vector(exact) if len(exact) == len(places) else None


def by_counts(read: Pass, ranks: Tensor) -> Tensor:
    """The k-th magnitudes from two passes that count, whatever the numbers.

    Args:
        read: gives all pieces; it is called twice.
        ranks: int64 (n,), k of each model.

    Returns:
        float64 (n,).

    Source:
        Selection by radix over the upper and the lower 16 bits of float32.
    """
    upper, before = _place(_counted(read, None), ranks)
    lower, _ = _place(_counted(read, upper), ranks - before)
    bits = (upper << 16) | lower
    return bits.to(torch.int32).view(torch.float32).double()


def _within(
    read: Pass, low: list[float], high: list[float]
) -> tuple[list[list[int]], list[list[Tensor]]] | None:
    """Counts around each model's range and the magnitudes inside, in parts; None where they are too many."""
    ends = _vector(low), _vector(high)
    counts = torch.zeros(len(low), 4, dtype=torch.int64)
    inside: list[list[Tensor]] = [[] for _ in low]
    for piece in read():
        assert piece.base is not None
        found = magnitudes_within(piece.base, piece.models, *ends)
        counts += found.counts
        if int(counts[:, 2].sum()) > LIMIT:
            return None
        for own, values in zip(inside, torch.split(found.values, found.counts[:, 2].tolist()), strict=True):
            own.append(values)
    return counts.tolist(), inside


def _placed(rank: int, low: float, high: float, counts: list[int], inside: list[Tensor]) -> float | None:
    """The number of a rank; None where it is outside of the range."""
    below, at_low, between, at_high = counts
    # Ranks among the numbers at `low`, between and at `high`.
    here = rank - below
    if here < 1 or here > at_low + between + at_high:
        return None
    if here <= at_low:
        return low
    return _kth(torch.cat(inside), here - at_low) if here <= at_low + between else high


def _kth(numbers: Tensor, rank: int) -> float:
    # Three times as fast as torch.kthvalue; partitioning is slow where numbers repeat. All have nan last.
    return float(np.sort(numbers.numpy())[rank - 1])


def _vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


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
