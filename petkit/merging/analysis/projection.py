"""Shifts projected to a few dimensions by seeded random signs: an orthogonal projection in one read."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from petkit.errors import ConfigError
from petkit.merging.analysis.footprint import CHUNK, Room, Shifts, cosine
from petkit.merging.slices import stream_key

DIMENSIONS = 256
LEAST, MOST = 16, 4096


@dataclass(frozen=True)
class Projection:
    """Every number gets a random sign and is added to one of the dimensions.

    Rows of the projection have no number in common, so that they are orthogonal, and <Px, Py> is <x, y> on
    average. What becomes of a number depends on the seed, its tensor's name and its place in it alone.

    Args:
        dimensions: a power of 2.
        seed: of signs and dimensions.
        order: which numbers of a chunk come together; those of one dimension stand side by side.
    """

    dimensions: int = DIMENSIONS
    seed: int = 0
    order: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if not LEAST <= self.dimensions <= MOST or self.dimensions & (self.dimensions - 1):
            raise ConfigError(
                f"dimensions must be a power of 2 from {LEAST} to {MOST}, got {self.dimensions}"
            )
        keys = self._bits("", 0, CHUNK)
        object.__setattr__(self, "order", torch.from_numpy(np.argsort(keys, kind="stable")))

    @property
    def standard_deviation(self) -> float:
        """Of a cosine after the projection, around the one before, by Johnson and Lindenstrauss."""
        return 1 / math.sqrt(self.dimensions)

    def signs(self, tensor: str, chunk: int) -> Tensor:
        """+1 or -1 for every number of a chunk of a tensor, float32 (CHUNK,)."""
        bits = self._bits(tensor, 2 * chunk, CHUNK // 64).view(np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little").astype(np.float32)).mul_(2).sub_(1)

    def targets(self, tensor: str, chunk: int) -> Tensor:
        """The dimension that each group of a chunk's numbers is added to: int64 (dimensions,)."""
        keys = self._bits(tensor, 2 * chunk + 1, self.dimensions)
        return torch.from_numpy(np.argsort(keys, kind="stable"))

    def add(self, total: Tensor, shifts: Shifts, tensor: str, chunk: int, room: Room) -> None:
        """Project a chunk.

        Args:
            total: float64 (dimensions, n, n), added to: at [:, i, j] is the projection of i's shifts where i
                and j changed weights.
            shifts: the chunk.
            tensor: its tensor.
            chunk: its place in it.
            room: that it is in; the chunk's shifts and weights are lost.
        """
        moved = torch.mul(shifts.moved, self.signs(tensor, chunk), out=room.spare)
        signed = torch.index_select(moved, 1, self.order, out=room.shifts)
        changed = torch.index_select(shifts.changed, 1, self.order, out=room.weights)
        groups = [one.view(len(one), self.dimensions, -1).transpose(0, 1) for one in (signed, changed)]
        found = torch.bmm(groups[0], groups[1].transpose(1, 2))
        total.index_add_(0, self.targets(tensor, chunk), found.double())

    def _bits(self, name: str, part: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Random bits, 64 in each; they are Philox's own, which no version of numpy draws otherwise."""
        digest = hashlib.sha256(f"{stream_key(self.seed, name, part)}/projection".encode()).digest()
        key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
        return np.random.Philox(key=key).random_raw(count)


def projected_cosine(total: Tensor, first: int, second: int) -> float | None:
    """The cosine of two models' shifts where both changed weights, after the projection.

    Args:
        total: float64 (dimensions, n, n) of `Projection.add`.
        first: place of one model.
        second: place of the other.

    Returns:
        From -1 to 1; None where there is no such weight.
    """
    left, right = total[:, first, second], total[:, second, first]
    return cosine(float(left @ right), float(left @ left), float(right @ right))
