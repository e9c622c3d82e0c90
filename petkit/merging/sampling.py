"""A range of magnitudes that almost surely holds the k-th of many, from a sample of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from petkit.merging.slices import Piece, Slices

# A sample of pieces in memory: runs of half a line of the cache, since less is not fetched.
RUNS, RUN = 512, 32
# A sample that is read: a run for so many numbers, at least and at most so many runs, as much as a page each.
SPACING, LEAST_RUNS, MOST_RUNS, READ_RUN = 1 << 16, 64, 1 << 12, 512
# Standard deviations of the wanted place on both sides; what is missed nevertheless is counted.
SIGMAS = 5.0
# Leaves no regular distance between runs, which might be that of a matrix's rows.
_STEP, _BITS = 0x9E3779B1, 32


class Bracket(NamedTuple):
    """A range of magnitudes."""

    low: float
    high: float
    share: float
    """Of the numbers of the sample that are between the two and equal to neither."""


def sample(tensors: Sequence[Slices], held: Sequence[Piece] | None) -> Tensor | None:
    """Magnitudes of differences to the base, the same whenever they are asked for.

    Args:
        tensors: that are sampled as one, each by its size.
        held: all their pieces, where they are in memory; otherwise short runs of numbers are read.

    Returns:
        float32 (n, runs, numbers of a run), runs in the order of their places; None where there are too few.
    """
    return _of_tensors(tensors) if held is None else _of_pieces(held)


def bracket(numbers: Tensor, rank: int, count: int) -> Bracket | None:
    """A range that almost surely holds the k-th smallest of all.

    Args:
        numbers: float32 (runs, numbers of a run), the sample.
        rank: k, 1 to `count`.
        count: of all numbers.

    Returns:
        The range, as wide as neighbouring runs differ; None where nan are in the sample's way.
    """
    ordered = np.sort(numbers.numpy(), axis=None)
    centre = (rank - 0.5) / count * len(ordered)
    likeliest = float(ordered[min(len(ordered) - 1, int(centre))])
    spread = max(_spread(numbers < likeliest), _spread(numbers <= likeliest))
    reach = SIGMAS * (spread + 1)
    first, last = math.floor(centre - reach), math.ceil(centre + reach)
    low = float(ordered[first]) if first >= 0 else 0.0
    high = float(ordered[last]) if last < len(ordered) else math.inf
    high = math.inf if math.isnan(high) else high
    if math.isnan(low):
        return None
    inside = np.searchsorted(ordered, np.float32(high)) - np.searchsorted(ordered, np.float32(low), "right")
    return Bracket(low, high, max(0, int(inside)) / len(ordered))


def magnitudes(piece: Piece) -> Tensor:
    """|model - base| of a piece, float32 (n, count)."""
    assert piece.base is not None
    return (piece.models.float() - piece.base.float()).abs_()


def _spread(is_before: Tensor) -> float:
    """The standard deviation of a sum over runs that were drawn each from its own stretch.

    Stretches differ, so that only neighbours say how far a run is from the mean of its stretch.
    """
    found = is_before.sum(1).double()
    return math.sqrt(float(found.diff().square().mean()) / 2 * len(found))


def _starts(count: int, runs: int, length: int) -> Tensor:
    """A place of a run in each of as many stretches of `count` numbers."""
    stretch = count // runs
    places = torch.arange(runs)
    mixed = places * _STEP & (1 << _BITS) - 1
    return places * stretch + (mixed * (stretch - length + 1) >> _BITS)


def _of_pieces(pieces: Sequence[Piece]) -> Tensor:
    starts = _starts(sum(piece.models.shape[1] for piece in pieces), RUNS, RUN)
    found = []
    for piece in pieces:
        assert piece.base is not None
        own = starts - piece.start
        # A run over the edge of a piece is left out.
        own = own[(own >= 0) & (own <= piece.models.shape[1] - RUN)]
        runs = Piece(0, piece.models.unfold(1, RUN, 1)[:, own], piece.base.unfold(0, RUN, 1)[own])
        found.append(magnitudes(runs))
    return torch.cat(found, 1)


def _of_tensors(tensors: Sequence[Slices]) -> Tensor | None:
    long = [one for one in tensors if one.count >= READ_RUN]
    ends = list(accumulate((one.count for one in long), initial=0))
    runs = min(MOST_RUNS, max(LEAST_RUNS, ends[-1] // SPACING), ends[-1] // READ_RUN)
    if runs < LEAST_RUNS:
        return None
    starts = _starts(ends[-1], runs, READ_RUN).tolist()
    found = []
    for one, (begin, end) in zip(long, pairwise(ends), strict=True):
        own = [
            min(start - begin, one.count - READ_RUN)
            for start in starts[bisect_left(starts, begin) : bisect_left(starts, end)]
        ]
        if own:
            found.append(magnitudes(one.runs(own, READ_RUN)).view(-1, len(own), READ_RUN))
    return torch.cat(found, 1)
