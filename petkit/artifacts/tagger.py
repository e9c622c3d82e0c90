"""A tagger's folder: labels, settings, vocabulary and the weights that training changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from petkit.artifacts.dense import to_torch
from petkit.artifacts.kinds import kind_of, read_kind
from petkit.artifacts.manifest import Base, Sha256, Step
from petkit.artifacts.model_folder import read_model_tensors, read_vocabulary, write_model_folder
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.reader import MANIFEST, artifact_folder, module_shapes
from petkit.artifacts.tensor_file import RawTensor
from petkit.errors import ArtifactError

if TYPE_CHECKING:
    import torch

WEIGHTS = "tagger.safetensors"


class TaggerManifest(BaseModel):
    """The content of a tagger's `petkit.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    schema_version: Literal[1] = 1
    kind: Literal["tagger"] = "tagger"
    base: Base | None = None
    """The transformers encoder; None where all weights are the tagger's own."""

    lineage: tuple[Step, ...] = ()
    labels: tuple[str, ...] = Field(min_length=1)
    """The tags, in the order of the head's rows."""

    tagger: dict[str, Any]
    """The resolved recipe."""

    tensors_sha256: str | None = Sha256

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("must be different tags")
        return labels


@dataclass(frozen=True, eq=False)
class TaggerArtifact:
    """A tagger in memory.

    Args:
        folder: where it was read from.
        manifest: `petkit.json`.
        packed: quantised matrices by module name.
        raw_dense: the other tensors, as the file holds them.
        vocabulary: the content of vocabulary.json; None where there is none.
    """

    folder: Path
    manifest: TaggerManifest
    packed: dict[str, PackedMatrix]
    raw_dense: dict[str, RawTensor]
    vocabulary: Any | None

    @cached_property
    def dense(self) -> dict[str, torch.Tensor]:
        """The other tensors by name."""
        return {name: to_torch(raw) for name, raw in self.raw_dense.items()}

    @property
    def tensor_file(self) -> Path:
        """The file of the tensors."""
        return self.folder / WEIGHTS

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without names and headers."""
        return sum(m.nbytes for m in self.packed.values()) + sum(t.data.size for t in self.raw_dense.values())


def write_tagger(
    folder: str | os.PathLike[str],
    manifest: TaggerManifest,
    packed: Mapping[str, PackedMatrix],
    dense: Mapping[str, torch.Tensor],
    files: Mapping[str, bytes] = {},
) -> Path:
    """Write a tagger's folder, whole or not at all.

    Args:
        folder: final name.
        manifest: what it is; its `tensors_sha256` is replaced by that of the file written here.
        packed: quantised matrices by module name.
        dense: other tensors by name.
        files: further files by name, such as the vocabulary.

    Returns:
        The folder.

    Raises:
        ArtifactError: the tensors contradict each other.
        InputError: the folder is not empty, or cannot be written.
    """
    return write_model_folder(folder, manifest, manifest.tagger, WEIGHTS, packed, dense, files)


def read_tagger(folder: str | os.PathLike[str]) -> TaggerArtifact:
    """Read a tagger's folder and check that its parts belong together.

    Args:
        folder: the artifact.

    Returns:
        Manifest, tensors and vocabulary.

    Raises:
        ArtifactError: a file is missing or damaged, or does not fit the others.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    path = artifact_folder(folder)
    manifest = read_manifest_of(path)
    packed, dense = read_weights(path, manifest)
    return TaggerArtifact(path, manifest, packed, dense, read_vocabulary(path))


def read_manifest_of(folder: Path) -> TaggerManifest:
    """Read a tagger's `petkit.json`.

    Raises:
        ArtifactError: it is broken, of another kind or of a later version.
        InputError: there is none.
    """
    return read_kind(folder, "tagger", TaggerManifest)


def read_weights(
    folder: Path, manifest: TaggerManifest
) -> tuple[dict[str, PackedMatrix], dict[str, RawTensor]]:
    """Read a tagger's tensors.

    Args:
        folder: the artifact.
        manifest: says their hash and how many rows the head has.

    Returns:
        Packed matrices by module name, and the other tensors by name.

    Raises:
        ArtifactError: the file is missing, damaged, or not the one of the manifest.
    """
    packed, dense = read_model_tensors(folder, WEIGHTS, manifest.tensors_sha256, "tagger")
    rows = module_shapes(packed, dense).get("head", (0,))[0]
    if rows != len(manifest.labels):
        raise ArtifactError(
            f"{folder}: the head has {rows} rows, {MANIFEST} names {len(manifest.labels)} labels"
        )
    return packed, dense


def is_tagger(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a tagger, sound or not."""
    return kind_of(folder) == "tagger"
