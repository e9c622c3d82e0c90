"""The pieces of one tensor in several models, read together: what every method of merging works on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
# Pieces in memory.
HELD = 3


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

    @property
    def is_held(self) -> bool:
        """Whether all of its pieces stay in memory while it is worked on."""
        return self.count <= (HELD - 1) * PIECE

    def __iter__(self) -> Iterator[Piece]:
        return self.pieces(PIECE)

    def pieces(self, size: int) -> Iterator[Piece]:
        """The tensor in pieces.

        Args:
            size: numbers of a piece.

        Yields:
            Pieces in order; each is overwritten by the next.
        """
        coming = self._asked(0, size)
        for start in range(0, self.count, size):
            piece = coming.result()
            # While one piece is worked on, the next is read.
            if start + size < self.count:
                coming = self._asked(start + size, size)
            yield piece

    @property
    def small(self) -> int:
        """Numbers of a piece for arithmetic that makes copies of it, wider ones too."""
        return max(1, PIECE >> 3)

    def size_of_rows(self, width: int) -> int:
        """Numbers of a piece of whole rows: as many as a piece has, or one row.

        Args:
            width: numbers of a row.
        """
        return max(1, PIECE // width) * width

    def whole(self) -> Piece:
        """All of the tensor at once, for methods that need it so."""
        return self.buffers.only(self, self.count).result()

    def runs(self, starts: Sequence[int], length: int) -> Piece:
        """Short runs of numbers side by side, for a sample; what is held stays.

        Args:
            starts: places of their first numbers.
            length: numbers of each.
        """
        return READER.submit(self._runs, starts, length).result()

    def begin(self, size: int | None = None) -> None:
        """Have the first piece read, while something else is worked on.

        Args:
            size: numbers that it will probably have; default: as many as a piece has.
        """
        self._asked(0, size or PIECE)

    def _asked(self, start: int, size: int) -> Future[Piece]:
        return self.buffers.asked(self, start, min(size, self.count - start))

    def read(self, start: int, count: int, memory: Memory) -> Piece:
        """Read a piece.

        Args:
            start: of its first number.
            count: of its numbers.
            memory: to read into.
        """
        return self._filled([start], count, memory)

    def _runs(self, starts: Sequence[int], length: int) -> Piece:
        return self._filled(starts, length, Memory())

    def _filled(self, starts: Sequence[int], length: int, memory: Memory) -> Piece:
        readings = [*self.models, *([self.base] if self.base else [])]
        rows = memory.rows(len(readings), len(starts) * length, self.dtype)
        for row, reading in zip(rows, readings, strict=True):
            for start, run in zip(starts, row.split(length), strict=True):
                memory.fill(run, reading, start)
        base = rows[-1] if self.base else None
        return Piece(starts[0], rows[: len(self.models)], base)


@dataclass
class Memory:
    """Memory for a piece, grown where it has to be."""

    _rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    _raw: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def rows(self, count: int, length: int, dtype: torch.dtype) -> Tensor:
        """A (count, length) tensor of the dtype, in the memory of the last one."""
        nbytes = count * length * dtype.itemsize
        self._rows = _grown(self._rows, nbytes)
        return self._rows[:nbytes].view(dtype).view(count, length)

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


@dataclass(frozen=True, eq=False)
class _Held:
    """A piece that was asked for: of which tensor, from where on, how many numbers."""

    slices: Slices
    start: int
    count: int
    memory: Memory
    piece: Future[Piece]


@dataclass
class Buffers:
    """The pieces that were asked for last: one is worked on, one is read, one may be asked for again.

    So a tensor of at most two pieces is read once, however often a method looks at it.
    """

    _held: list[_Held] = field(default_factory=list)
    """The longest unused first."""

    def asked(self, slices: Slices, start: int, count: int) -> Future[Piece]:
        """A piece, as soon as it is read; it is overwritten when `HELD` others were asked for after it."""
        for one in self._held:
            if one.slices is slices and (one.start, one.count) == (start, count):
                self._held.remove(one)
                self._held.append(one)
                return one.piece
        memory = self._held.pop(0).memory if len(self._held) >= HELD else Memory()
        piece = READER.submit(slices.read, start, count, memory)
        self._held.append(_Held(slices, start, count, memory, piece))
        return piece

    def only(self, slices: Slices, count: int) -> Future[Piece]:
        """All of a tensor, with nothing held beside it."""
        self._held = [one for one in self._held if one.slices is slices and one.count == count]
        return self.asked(slices, 0, count)


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
