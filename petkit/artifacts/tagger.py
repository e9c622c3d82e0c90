"""A tagger's folder: labels, settings, vocabulary and the weights that training changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from petkit.artifacts.dense import to_raw, to_torch
from petkit.artifacts.files import write_folder
from petkit.artifacts.kinds import kind_of, read_kind
from petkit.artifacts.manifest import Base, Sha256, Step
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.reader import (
    CONFIG,
    MANIFEST,
    artifact_folder,
    module_shapes,
    pair_faults,
    small_file,
    split_tensors,
)
from petkit.artifacts.strict_json import parse_json
from petkit.artifacts.tensor_file import RawTensor, read_tensor_file
from petkit.artifacts.writer import check_output, tensor_bytes
from petkit.configuration import dump_yaml
from petkit.errors import ArtifactError

if TYPE_CHECKING:
    import torch

WEIGHTS = "tagger.safetensors"
VOCABULARY = "vocabulary.json"
MAX_VOCABULARY = 256 * 2**20


class TaggerManifest(BaseModel):
    """The content of a tagger's `petkit.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    path = Path(folder)
    tensors = tensor_bytes(packed, {name: to_raw(tensor) for name, tensor in dense.items()})
    complete = manifest.model_copy(update={"tensors_sha256": hashlib.sha256(tensors).hexdigest()})
    content = complete.model_dump(mode="json")
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    own = {MANIFEST: text.encode(), CONFIG: dump_yaml(manifest.tagger).encode(), WEIGHTS: tensors}
    check_output(path)
    write_folder(path, {**files, **own})
    return path


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
    try:
        content = read_tensor_file(folder, WEIGHTS)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {WEIGHTS}: the tagger was not finished, or not copied whole"
        ) from None
    packed, dense = split_tensors(content, str(folder), WEIGHTS)
    if content.sha256() != manifest.tensors_sha256:
        raise ArtifactError(
            f"{folder / WEIGHTS} has sha256 {content.sha256()}, {MANIFEST} says {manifest.tensors_sha256}: "
            "the file was altered or exchanged"
        )
    faults = pair_faults(packed, dense)
    rows = module_shapes(packed, dense).get("head", (0,))[0]
    if rows != len(manifest.labels):
        faults.append(f"the head has {rows} rows, {MANIFEST} names {len(manifest.labels)} labels")
    if faults:
        raise ArtifactError(f"{folder}: {'; '.join(faults[:4])}")
    return packed, dense


def read_vocabulary(folder: Path) -> Any | None:
    """The content of vocabulary.json; None where there is none.

    Raises:
        ArtifactError: it is not valid JSON, or too large.
    """
    try:
        return parse_json(small_file(folder, VOCABULARY, MAX_VOCABULARY))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder / VOCABULARY} is not valid JSON: {str(error)[:200]}") from error


def is_tagger(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a tagger, sound or not."""
    return kind_of(folder) == "tagger"
