"""What artifacts of all kinds hold, in one form: a manifest, and tensors, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel

from petkit.artifacts.kinds import kind_of
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.paths import open_inside
from petkit.artifacts.router import NETWORK, read_router
from petkit.artifacts.tagger import read_tagger
from petkit.artifacts.tensor_file import Place, RawTensor, locate_tensors
from petkit.artifacts.translator import read_translator
from petkit.artifacts.whole_model import is_whole, read_whole, shards_of
from petkit.errors import ArtifactError


class Contents(Protocol):
    """An artifact of any kind."""

    @property
    def folder(self) -> Path:
        """Where it was read from."""

    @property
    def manifest(self) -> BaseModel:
        """`petkit.json`."""

    @property
    def packed(self) -> Mapping[str, PackedMatrix]:
        """Quantised matrices by module name."""

    @property
    def raw_dense(self) -> Mapping[str, RawTensor]:
        """The other tensors by name."""


@dataclass(frozen=True, eq=False)
class FileContents:
    """An artifact whose tensors stay in their files.

    Args:
        folder: where it was read from.
        manifest: `petkit.json`.
        raw_dense: its tensors.
    """

    folder: Path
    manifest: BaseModel
    raw_dense: Mapping[str, RawTensor]

    @property
    def packed(self) -> Mapping[str, PackedMatrix]:
        """There are none."""
        return {}


class FileTensors(Mapping[str, RawTensor]):
    """The tensors of safetensors files, each read when it is asked for.

    Args:
        folder: of the files.
        names: of the files; a tensor is in one of them.

    Raises:
        ArtifactError: a file is damaged.
        SafetyError: a pickle, or a path that leaves the folder.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder = folder
        self._places: dict[str, tuple[str, Place]] = {
            tensor: (name, place) for name in names for tensor, place in locate_tensors(folder, name).items()
        }

    def __getitem__(self, tensor: str) -> RawTensor:
        name, place = self._places[tensor]
        with open_inside(self._folder, name) as file:
            file.seek(place.begin)
            raw = file.read(place.end - place.begin)
        if len(raw) != place.end - place.begin:
            raise ArtifactError(f"{self._folder / name} became shorter while it was read")
        return RawTensor(place.dtype, place.shape, np.frombuffer(raw, dtype=np.uint8))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_other(folder: Path) -> Contents | None:
    """Read an artifact that is no adapter.

    Args:
        folder: the artifact.

    Returns:
        What it holds; None where it states to be an adapter, or nothing that is known.

    Raises:
        ArtifactError: it is damaged.
    """
    if is_whole(folder):
        return FileContents(folder, read_whole(folder), FileTensors(folder, shards_of(folder)))
    kind = kind_of(folder)
    if kind == "tagger":
        return read_tagger(folder)
    if kind == "translator":
        return read_translator(folder)
    if kind == "router":
        files = [NETWORK] if (folder / NETWORK).exists() else []
        return FileContents(folder, read_router(folder), FileTensors(folder, files))
    return None
