"""The pieces of one tensor in several models, read together: what every method of merging works on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.merging.sources import Source

# Numbers of a piece: its rows of four bfloat16 models and the result stay in the second-level cache's
# neighbourhood, and a read is long enough for the disk.
PIECE = 1 << 21
# Reads ahead; preadv lets other threads go on meanwhile.
READER = ThreadPoolExecutor(1, "petkit-read")


class Piece(NamedTuple):
    """Numbers of one tensor, from the `start`-th on."""

    start: int
    models: Tensor
    """(n, count), a row for each model, all of one dtype; valid until the next piece is read."""

    base: Tensor | None
    """(count,) of the base, where there is one."""


class Reading(NamedTuple):
    """A tensor of a model."""

    source: Source
    tensor: str


@dataclass(frozen=True)
class Slices:
    """One tensor in several models.

    Args:
        name: of the merged tensor, for messages and for the streams of random numbers.
        shape: of it.
        models: where it is in each model.
        base: where it is in the base; None without a base.
        dtype: in which pieces are given.
        buffers: reused from tensor to tensor.
    """

    name: str
    shape: tuple[int, ...]
    models: Sequence[Reading]
    base: Reading | None
    dtype: torch.dtype
    buffers: Buffers

    @property
    def count(self) -> int:
        """Numbers of the tensor."""
        return torch.Size(self.shape).numel()

    def __iter__(self) -> Iterator[Piece]:
        return self.pieces(PIECE)

    def pieces(self, size: int) -> Iterator[Piece]:
        """The tensor in pieces.

        Args:
            size: numbers of a piece.

        Yields:
            Pieces in order; each is overwritten by the next.
        """
        starts = range(0, self.count, size)
        # While one piece is worked on, the next is read.
        reading = None
        for place, start in enumerate(starts):
            piece = reading.result() if reading else self._piece(start, min(size, self.count - start), place)
            following = start + size
            reading = None
            if following < self.count:
                length = min(size, self.count - following)
                reading = READER.submit(self._piece, following, length, place + 1)
            yield piece

    def whole(self) -> Piece:
        """All of the tensor at once, for methods that need it so."""
        return self._piece(0, self.count, 0)

    def _piece(self, start: int, count: int, place: int) -> Piece:
        readings = [*self.models, *([self.base] if self.base else [])]
        rows = self.buffers.rows(place % 2, len(readings), count, self.dtype)
        # A tensor of at most two pieces is read once, however often a method looks at it.
        if not self.buffers.holds(place % 2, self, start, count):
            for row, reading in zip(rows, readings, strict=True):
                self.buffers.fill(row, reading, start)
            self.buffers.held[place % 2] = (self, start, count)
        base = rows[-1] if self.base else None
        return Piece(start, rows[: len(self.models)], base)


@dataclass
class Buffers:
    """Memory that pieces are read into, again and again: two of them in turn."""

    held: list[tuple[Slices, int, int] | None] = field(default_factory=lambda: [None, None])
    """The piece that each memory holds: of which tensor, from where on, how many numbers."""

    _memory: list[Tensor] = field(default_factory=lambda: [torch.empty(0, dtype=torch.uint8)] * 2)
    _raw: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def holds(self, which: int, slices: Slices, start: int, count: int) -> bool:
        """Whether a piece is there already."""
        held = self.held[which]
        return held is not None and held[0] is slices and held[1:] == (start, count)

    def rows(self, which: int, count: int, length: int, dtype: torch.dtype) -> Tensor:
        """A (count, length) tensor of the dtype, in memory that is used again at the next call for it."""
        nbytes = count * length * dtype.itemsize
        if self._memory[which].numel() < nbytes:
            self._memory[which], self.held[which] = torch.empty(nbytes, dtype=torch.uint8), None
        return self._memory[which][:nbytes].view(dtype).view(count, length)

    def fill(self, row: Tensor, reading: Reading, start: int) -> None:
        """Read numbers of a tensor into a row, converted where its dtype is another one."""
        own = reading.source.entries[reading.tensor].dtype
        if own == row.dtype:
            reading.source.read(reading.tensor, start, row)
            return
        self._raw = _grown(self._raw, len(row) * own.itemsize)
        raw = self._raw[: len(row) * own.itemsize].view(own)
        reading.source.read(reading.tensor, start, raw)
        row.copy_(raw)


def _grown(memory: Tensor, nbytes: int) -> Tensor:
    return memory if memory.numel() >= nbytes else torch.empty(nbytes, dtype=torch.uint8)


def check_shapes(name: str, readings: Sequence[Reading]) -> tuple[int, ...]:
    """Refuse a tensor that has not the same shape everywhere.

    Args:
        name: of the merged tensor.
        readings: where it is.

    Returns:
        The shape.

    Raises:
        InputError: names the tensor, the models and both shapes.
    """
    first = readings[0]
    wanted = first.source.entries[first.tensor].shape
    for other in readings[1:]:
        found = other.source.entries[other.tensor].shape
        if found != wanted:
            raise InputError(
                f"{name} must have one shape in all models, it is {wanted} in {first.source.name} and "
                f"{found} in {other.source.name}"
            )
    return wanted


def stream_key(seed: int, name: str, model: int) -> int:
    """The key of the random numbers of a tensor of a model, whatever the order of tensors.

    Args:
        seed: of the merge.
        name: of the merged tensor.
        model: its place among the models.

    Returns:
        A number of 64 bits, signed.
    """
    digest = hashlib.sha256(f"{seed}/{model}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
