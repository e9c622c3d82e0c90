"""The folder of a merged model: shards whose headers come first, and whose tensors come piece by piece."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from petkit.artifacts.files import write_error
from petkit.merging.plan import Planned
from petkit.merging.shards import INDEX, SINGLE
from petkit.merging.sources import DTYPES, OTHER_DTYPES

# As transformers writes shards.
SHARD_BYTES = 5_000_000_000
# Pieces that may wait to be written.
AHEAD = 2
# After so many bytes the disk is told to begin.
SYNC_BYTES = 1 << 27
_NAMES = {dtype: name for name, dtype in {**DTYPES, **OTHER_DTYPES}.items()}


class _Spot(NamedTuple):
    """Where a tensor goes."""

    shard: int
    file: int
    position: int
    item: int


@dataclass(frozen=True)
class Shard:
    """One file of the result.

    Args:
        name: of the file.
        head: its length and header.
        tensors: names of its tensors.
        payload: bytes behind the header.
    """

    name: str
    head: bytes
    tensors: tuple[str, ...]
    payload: int


@dataclass
class Writer:
    """Open shards, which are written and hashed beside the merging.

    Args:
        folder: where they are.
        shards: their headers.
        spots: where each tensor goes.
    """

    folder: Path
    shards: Sequence[Shard]
    spots: dict[str, _Spot]
    _digest: Any = field(default_factory=hashlib.sha256)
    _end: tuple[int, int] = (-1, 0)
    """Place of the shard that was written last, and the position behind its last byte."""

    _writing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "petkit-write"))
    _syncing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "petkit-sync"))
    _pending: deque[Future[None]] = field(default_factory=deque)
    _synced: list[Future[None]] = field(default_factory=list)
    _unsynced: int = 0

    def write(self, tensor: str, start: int, numbers: Tensor) -> None:
        """Write numbers of a tensor, in the order of the plan; it may be done after this returns.

        Args:
            tensor: its name.
            start: place of the first.
            numbers: flat, of the planned dtype; to be left as they are.

        Raises:
            PetkitError: the disk is full, or the file cannot be written; of these numbers or earlier ones.
        """
        while len(self._pending) >= AHEAD:
            self._pending.popleft().result()
        spot = self.spots[tensor]
        view = memoryview(numbers.contiguous().view(torch.uint8).numpy().data)
        self._pending.append(self._writing.submit(self._put, spot, spot.position + start * spot.item, view))

    def finish(self) -> str:
        """Wait until all is written, though perhaps not yet on the disk.

        Returns:
            SHA-256 of the shards as they were in memory, one behind the other.
        """
        while self._pending:
            self._pending.popleft().result()
        assert self._end[0] == len(self.shards) - 1
        for file in dict.fromkeys(spot.file for spot in self.spots.values()):
            self._synced.append(self._syncing.submit(os.fsync, file))
        digest: str = self._digest.hexdigest()
        return digest

    def close(self) -> None:
        """Wait until all that was finished is on the disk.

        Raises:
            PetkitError: it cannot be written.
        """
        try:
            for one in self._synced:
                one.result()
        except OSError as error:
            raise write_error(self.folder, error) from error
        finally:
            self._writing.shutdown(cancel_futures=True)
            self._syncing.shutdown(cancel_futures=True)

    def _put(self, spot: _Spot, position: int, view: memoryview) -> None:
        if spot.shard != self._end[0]:
            head = self.shards[spot.shard].head
            self._digest.update(head)
            self._end = (spot.shard, len(head))
        assert self._end == (spot.shard, position), "numbers must come in the order of the plan"
        try:
            _write_all(spot.file, view, position)
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._digest.update(view)
        self._end = (spot.shard, position + len(view))
        self._unsynced += len(view)
        if self._unsynced >= SYNC_BYTES:
            # The disk is kept busy from early on, and not asked for everything at the end.
            self._synced.append(self._syncing.submit(os.fdatasync, spot.file))
            self._unsynced = 0


@contextmanager
def open_output(folder: Path, tensors: Sequence[Planned], shard_bytes: int = SHARD_BYTES) -> Iterator[Writer]:
    """Make the shards of a result and their index.

    Args:
        folder: which is there, and empty of them.
        tensors: what will be written, larger items first.
        shard_bytes: the most that a shard holds; a larger tensor has one of its own.

    Yields:
        What writes them; when it ends, everything is on the disk.

    Raises:
        PetkitError: the folder cannot be written.
    """
    shards = list(_shards(tensors, shard_bytes))
    by_name = {one.name: one for one in tensors}
    spots: dict[str, _Spot] = {}
    with ExitStack() as stack:
        for place, shard in enumerate(shards):
            file = stack.enter_context(_created(folder / shard.name, shard))
            position = len(shard.head)
            for name in shard.tensors:
                spots[name] = _Spot(place, file, position, by_name[name].dtype.itemsize)
                position += by_name[name].nbytes
        if len(shards) > 1:
            _write_index(folder, shards)
        writer = Writer(folder, shards, spots)
        stack.callback(writer.close)
        yield writer


@contextmanager
def _created(path: Path, shard: Shard) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        try:
            _write_all(file, memoryview(shard.head), 0)
            # A full disk is found now, and not behind hours of work.
            if shard.payload:
                os.posix_fallocate(file, len(shard.head), shard.payload)
        except OSError as error:
            raise write_error(path, error) from error
        yield file
    finally:
        os.close(file)


def _write_all(file: int, view: memoryview, position: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], position + done)


def _shards(tensors: Sequence[Planned], most: int) -> Iterator[Shard]:
    groups: list[list[Planned]] = [[]]
    size = 0
    for one in tensors:
        if groups[-1] and size + one.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += one.nbytes
    for place, group in enumerate(groups, start=1):
        name = SINGLE if len(groups) == 1 else f"model-{place:05d}-of-{len(groups):05d}.safetensors"
        yield Shard(name, _head(group), tuple(one.name for one in group), sum(one.nbytes for one in group))


def _head(tensors: Sequence[Planned]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for one in tensors:
        end = position + one.nbytes
        header[one.name] = {
            "dtype": _NAMES[one.dtype],
            "shape": list(one.slices.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_index(folder: Path, shards: Sequence[Shard]) -> None:
    content = {
        "metadata": {"total_size": sum(shard.payload for shard in shards)},
        "weight_map": {name: shard.name for shard in shards for name in shard.tensors},
    }
    (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
