"""Models that are read in slices: a folder of safetensors shards, or tensors in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from petkit.artifacts.paths import open_inside
from petkit.artifacts.tensor_file import Place
from petkit.errors import ArtifactError
from petkit.merging.shards import located

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# As safetensors writes other tensors, such as the counters of batch norms.
OTHER_DTYPES = {
    "F64": torch.float64, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor of a model, before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Its numbers."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.count * self.dtype.itemsize


class Source(Protocol):
    """A model whose tensors can be read piece by piece."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What there is."""

    def read(self, tensor: str, start: int, out: Tensor) -> None:
        """Read numbers of a tensor, from the `start`-th on, into a flat tensor of its dtype."""
        ...


@dataclass(frozen=True)
class StateDict:
    """Tensors in memory as a source."""

    name: str
    tensors: Mapping[str, Tensor]

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What there is."""
        return {name: Entry(one.dtype, tuple(one.shape)) for name, one in self.tensors.items()}

    def read(self, tensor: str, start: int, out: Tensor) -> None:
        """Copy numbers of a tensor."""
        out.copy_(self.tensors[tensor].reshape(-1)[start : start + len(out)])


@dataclass
class ModelFolder:
    """A Hugging Face model folder, or any folder of one safetensors file; open while it is used.

    Pieces are read with pread into the caller's buffers: mapped pages would count as memory of the process.
    """

    name: str
    folder: Path
    places: dict[str, tuple[str, Place]]
    """File and place of each tensor."""

    entries: dict[str, Entry] = field(default_factory=dict)
    _files: dict[str, FileIO] = field(default_factory=dict)

    def read(self, tensor: str, start: int, out: Tensor) -> None:
        """Read numbers of a tensor.

        Args:
            tensor: its name.
            start: first number.
            out: flat, of the tensor's dtype; as many numbers as it has are read.

        Raises:
            ArtifactError: the file became shorter, or cannot be read.
        """
        file, place = self.places[tensor]
        view = memoryview(out.view(torch.uint8).numpy().data)
        position = place.begin + start * out.element_size()
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._files[file].fileno(), [view[done:]], position + done)
            except OSError as error:
                raise ArtifactError(f"cannot read {self.folder / file}: {error.strerror}") from error
            if count == 0:
                raise ArtifactError(f"{self.folder / file} became shorter while it was read")
            done += count


@contextmanager
def open_model(folder: str | os.PathLike[str], name: str | None = None) -> Iterator[ModelFolder]:
    """Open a model folder for reading in pieces.

    Args:
        folder: with model.safetensors, an index of shards, or a single safetensors file of another name.
        name: for messages; default: the folder.

    Yields:
        The model.

    Raises:
        ArtifactError: a file is damaged, a shard is missing, or the index names what is not there.
        InputError: there is no such folder, or it holds no safetensors.
        SafetyError: a pickle, or a path that leads out of the folder.
    """
    path = Path(folder)
    places = located(path)
    model = ModelFolder(name or str(path), path, places)
    model.entries.update({tensor: _entry(place, path, tensor) for tensor, (_, place) in places.items()})
    with ExitStack() as stack:
        for file in dict.fromkeys(file for file, _ in places.values()):
            model._files[file] = stack.enter_context(open_inside(path, file))
        yield model


def _entry(place: Place, path: Path, tensor: str) -> Entry:
    dtype = DTYPES.get(place.dtype) or OTHER_DTYPES.get(place.dtype)
    if dtype is None:
        raise ArtifactError(f"{path}: {tensor} has dtype {place.dtype}, which is not merged")
    return Entry(dtype, place.shape)
