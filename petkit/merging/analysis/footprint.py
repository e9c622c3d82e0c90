"""Which weights fine-tuning changed and where to: sums over chunks of weights, and the measures they give."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from petkit.errors import ConfigError

# As M2RL has it: smaller changes are what bfloat16 rounds.
ETA = 1e-3
# Numbers that are added up at a time. It is fixed, so that sums are the same whatever the pieces are.
CHUNK = 1 << 16
# Within a chunk, a product of matrices of this many numbers is one thread's: nor do threads change sums.
BLOCK = 1 << 12


@dataclass
class Tally:
    """Sums over weights of n models, of which shifts from the base are looked at; tallies of parts add up.

    Args:
        count: weights.
        base_square: sum of the base's squares.
        both: int64 (n, n), weights that two models changed; on the diagonal, that one did.
        conflicts: int64 (n, n), those among them whose shifts have different signs.
        dots: float64 (n, n), dot products of shifts.
        both_dots: the same over the weights that both changed.
        both_squares: float64 (n, n), at [i, j] the sum of the squares of i's shifts where j changed too.
    """

    count: int
    base_square: float
    both: Tensor
    conflicts: Tensor
    dots: Tensor
    both_dots: Tensor
    both_squares: Tensor

    @classmethod
    def empty(cls, models: int) -> Tally:
        """Of no weight."""
        counts = [torch.zeros(models, models, dtype=torch.int64) for _ in range(2)]
        sums = [torch.zeros(models, models, dtype=torch.float64) for _ in range(3)]
        return cls(0, 0.0, *counts, *sums)

    def add(self, other: Tally) -> None:
        """Count another part in."""
        self.count += other.count
        self.base_square += other.base_square
        for name in ("both", "conflicts", "dots", "both_dots", "both_squares"):
            getattr(self, name).add_(getattr(other, name))


@dataclass(frozen=True)
class Shifts:
    """A chunk of n models, in memory that the next chunk is put into.

    Args:
        shifts: float32 (n, CHUNK), models minus base; 0 behind the end of a tensor.
        changed: float32 (n, CHUNK), 1 where a weight was changed, else 0.
        moved: their product.
        base: float32 (1, CHUNK).
        count: numbers that there are.
    """

    shifts: Tensor
    changed: Tensor
    moved: Tensor
    base: Tensor
    count: int


class Room:
    """Memory for chunks of n models. To ask for it anew for each of them takes longer than their sums."""

    def __init__(self, models: int) -> None:
        self.weights, self.shifts, self.changed, self.moved, self.spare = torch.zeros(5, models, CHUNK)
        self.base, self.spare_base = torch.zeros(2, 1, CHUNK)
        self.wide = torch.zeros(2, models, CHUNK, dtype=torch.float64)
        self.wide_base = torch.zeros(1, CHUNK, dtype=torch.float64)


def changed_weights(models: Tensor, base: Tensor, eta: float = ETA) -> Tensor:
    """Tell which weights fine-tuning changed.

    Args:
        models: (n, count) weights, a row for each model.
        base: (count,) weights before.
        eta: relative threshold, from 0 (any difference) to below 1.

    Returns:
        bool (n, count): |w - w0| > eta max(|w|, |w0|).

    Source:
        To Mix or To Merge (2602.12566): the footprint of a weight shift.
    """
    return (models - base).abs() > torch.maximum(models.abs(), base.abs()) * eta


def shifts_of(models: Tensor, base: Tensor, eta: float, room: Room) -> Shifts:
    """Take the shifts of a chunk.

    Args:
        models: (n, count) of any float dtype, count at most CHUNK.
        base: (count,).
        eta: as in `changed_weights`.
        room: for n models.

    Returns:
        The shifts, computed in float32; they are in the room.
    """
    count = len(base)
    for row, given in ((room.weights, models), (room.base, base)):
        row[:, :count].copy_(given)
        row[:, count:].zero_()
    torch.sub(room.weights, room.base, out=room.shifts)
    torch.abs(room.base, out=room.spare_base)
    # `changed_weights`, in memory that is there.
    limit = torch.maximum(room.weights.abs_(), room.spare_base, out=room.moved).mul_(eta)
    torch.gt(torch.abs(room.shifts, out=room.weights), limit, out=room.changed)
    torch.mul(room.shifts, room.changed, out=room.moved)
    return Shifts(room.shifts, room.changed, room.moved, room.base, count)


def tally(chunk: Shifts, room: Room) -> Tally:
    """Add a chunk up: counts exactly, shifts in float64.

    Args:
        chunk: as `shifts_of` gives it.
        room: that it is in.

    Returns:
        The sums.
    """
    # A count of a chunk is a whole number of float32.
    both = _products(chunk.changed, chunk.changed).round().long()
    signs = torch.sign(chunk.moved, out=room.spare)
    agreeing = _products(signs, signs).round().long()
    base = room.wide_base.copy_(chunk.base)
    wide, changed = room.wide
    dots = _products(wide.copy_(chunk.shifts), wide)
    both_dots = _products(wide.copy_(chunk.moved), wide)
    return Tally(
        count=chunk.count,
        base_square=float(_products(base, base)),
        both=both,
        conflicts=(both - agreeing) // 2,
        dots=dots,
        both_dots=both_dots,
        both_squares=_products(wide.square_(), changed.copy_(chunk.changed)),
    )


def _products(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T of (n, CHUNK), block by block."""
    blocks = [one.view(len(one), -1, BLOCK).transpose(0, 1) for one in (left, right)]
    return torch.bmm(blocks[0], blocks[1].transpose(1, 2)).sum(0)


def check_eta(eta: float) -> None:
    """Refuse a threshold that is none.

    Raises:
        ConfigError: says what it is.
    """
    if not 0 <= eta < 1:
        raise ConfigError(f"eta must be at least 0 and below 1, got {eta}")


def random_overlap(first: float, second: float) -> float | None:
    """The Jaccard overlap that two random footprints have.

    Args:
        first: share of the weights in one, 0 to 1.
        second: share in the other, independent of it.

    Returns:
        p q / (p + q - p q), which is p / (2 - p) for equal shares; None where both are empty.

    Source:
        To Mix or To Merge (2602.12566), whose footprints of 0.3 have 0.176 by chance.
    """
    return ratio(first * second, first + second - first * second)


def ratio(part: float, whole: float) -> float | None:
    """A share; None of nothing."""
    return part / whole if whole > 0 else None


def cosine(dot: float, first_square: float, second_square: float) -> float | None:
    """The cosine of two vectors.

    Args:
        dot: their product.
        first_square: of one with itself.
        second_square: of the other with itself.

    Returns:
        From -1 to 1; None where one of them is 0.
    """
    found = ratio(dot, math.sqrt(first_square) * math.sqrt(second_square))
    return None if found is None else max(-1.0, min(1.0, found))
