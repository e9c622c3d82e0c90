"""A translator's folder: settings, vocabulary and all weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from petkit.artifacts.dense import to_torch
from petkit.artifacts.kinds import kind_of, read_kind
from petkit.artifacts.manifest import Sha256, Step
from petkit.artifacts.model_folder import read_model_tensors, read_vocabulary, write_model_folder
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.reader import artifact_folder
from petkit.artifacts.tensor_file import RawTensor
from petkit.errors import ArtifactError

if TYPE_CHECKING:
    import torch

WEIGHTS = "translator.safetensors"


class TranslatorManifest(BaseModel):
    """The content of a translator's `petkit.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    schema_version: Literal[1] = 1
    kind: Literal["translator"] = "translator"
    lineage: tuple[Step, ...] = ()
    translator: dict[str, Any]
    """The resolved recipe."""

    tensors_sha256: str | None = Sha256
    vocabulary_sha256: str | None = Sha256
    """Of the subwords: models rescore each other only where it is the same."""


@dataclass(frozen=True, eq=False)
class TranslatorArtifact:
    """A translator in memory.

    Args:
        folder: where it was read from.
        manifest: `petkit.json`.
        raw_dense: its tensors, as the file holds them.
        vocabulary: the content of vocabulary.json.
    """

    folder: Path
    manifest: TranslatorManifest
    raw_dense: dict[str, RawTensor]
    vocabulary: Any

    @property
    def packed(self) -> Mapping[str, PackedMatrix]:
        """Quantised matrices, of which a translator has none."""
        return {}

    @cached_property
    def dense(self) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        return {name: to_torch(raw) for name, raw in self.raw_dense.items()}

    @property
    def tensor_file(self) -> Path:
        """The file of the tensors."""
        return self.folder / WEIGHTS

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without names and headers."""
        return sum(tensor.data.size for tensor in self.raw_dense.values())


def write_translator(
    folder: str | os.PathLike[str],
    manifest: TranslatorManifest,
    tensors: Mapping[str, torch.Tensor],
    files: Mapping[str, bytes],
) -> Path:
    """Write a translator's folder, whole or not at all.

    Args:
        folder: final name.
        manifest: what it is; its `tensors_sha256` is replaced by that of the file written here.
        tensors: the weights by name.
        files: further files by name; the vocabulary among them.

    Returns:
        The folder.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    return write_model_folder(folder, manifest, manifest.translator, WEIGHTS, {}, tensors, files)


def read_translator(folder: str | os.PathLike[str]) -> TranslatorArtifact:
    """Read a translator's folder and check that its parts belong together.

    Args:
        folder: the artifact.

    Returns:
        Manifest, tensors and vocabulary.

    Raises:
        ArtifactError: a file is missing or damaged, or does not fit the others.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    path = artifact_folder(folder)
    manifest = read_translator_manifest(path)
    return TranslatorArtifact(path, manifest, read_weights(path, manifest), required_vocabulary(path))


def read_translator_manifest(folder: Path) -> TranslatorManifest:
    """Read a translator's `petkit.json`.

    Raises:
        ArtifactError: it is broken, of another kind or of a later version.
        InputError: there is none.
    """
    return read_kind(folder, "translator", TranslatorManifest)


def read_weights(folder: Path, manifest: TranslatorManifest) -> dict[str, RawTensor]:
    """Read a translator's tensors.

    Args:
        folder: the artifact.
        manifest: says their hash.

    Returns:
        Tensors by name.

    Raises:
        ArtifactError: the file is missing, damaged, or not the one of the manifest.
    """
    packed, dense = read_model_tensors(folder, WEIGHTS, manifest.tensors_sha256, "translator")
    if packed:
        raise ArtifactError(
            f"{folder} holds packed matrices, which a translator has not: {next(iter(packed))}"
        )
    return dense


def required_vocabulary(folder: Path) -> Any:
    """The content of vocabulary.json.

    Raises:
        ArtifactError: it is missing, not valid JSON, or too large.
    """
    found = read_vocabulary(folder)
    if found is None:
        raise ArtifactError(f"{folder} has no vocabulary.json: it was not finished, or not copied whole")
    return found


def is_translator(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a translator, sound or not."""
    return kind_of(folder) == "translator"
