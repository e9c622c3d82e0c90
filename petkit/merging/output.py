"""The folder of a merged model: shards whose headers come first, and whose tensors come piece by piece."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.merging.plan import Planned
from petkit.merging.sources import DTYPES, INDEX, OTHER_DTYPES, SINGLE

# As transformers writes shards.
SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in {**DTYPES, **OTHER_DTYPES}.items()}


class _Spot(NamedTuple):
    """Where a tensor goes."""

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


@dataclass(frozen=True)
class Writer:
    """Open shards.

    Args:
        folder: where they are.
        shards: their headers.
        spots: where each tensor goes.
    """

    folder: Path
    shards: Sequence[Shard]
    spots: dict[str, _Spot]

    def write(self, tensor: str, start: int, numbers: Tensor) -> None:
        """Write numbers of a tensor.

        Args:
            tensor: its name.
            start: place of the first.
            numbers: flat, of the planned dtype.

        Raises:
            InputError: the disk is full, or the file cannot be written.
        """
        spot = self.spots[tensor]
        view = memoryview(numbers.contiguous().view(torch.uint8).numpy().data)
        position, done = spot.position + start * spot.item, 0
        try:
            while done < len(view):
                done += os.pwrite(spot.file, view[done:], position + done)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror}") from error


@contextmanager
def open_output(folder: Path, tensors: Sequence[Planned], shard_bytes: int = SHARD_BYTES) -> Iterator[Writer]:
    """Make the shards of a result and their index.

    Args:
        folder: which is there, and empty of them.
        tensors: what will be written.
        shard_bytes: the most that a shard holds; a larger tensor has one of its own.

    Yields:
        What writes them; when it ends, everything is on the disk.

    Raises:
        InputError: the folder cannot be written.
    """
    shards = list(_shards(tensors, shard_bytes))
    by_name = {one.name: one for one in tensors}
    spots: dict[str, _Spot] = {}
    with ExitStack() as stack:
        files = []
        for shard in shards:
            file = stack.enter_context(_created(folder / shard.name, shard))
            files.append(file)
            position = len(shard.head)
            for name in shard.tensors:
                spots[name] = _Spot(file, position, by_name[name].dtype.itemsize)
                position += by_name[name].nbytes
        if len(shards) > 1:
            _write_index(folder, shards)
        yield Writer(folder, shards, spots)
        for file in files:
            os.fsync(file)


@contextmanager
def _created(path: Path, shard: Shard) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            os.pwrite(file, shard.head, 0)
            # A full disk is found now, and not behind hours of work.
            if shard.payload:
                os.posix_fallocate(file, len(shard.head), shard.payload)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        yield file
    finally:
        os.close(file)


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
        # Larger items first, so that each tensor is aligned.
        ordered = sorted(group, key=lambda one: -one.dtype.itemsize)
        yield Shard(
            name, _head(ordered), tuple(one.name for one in ordered), sum(one.nbytes for one in ordered)
        )


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
