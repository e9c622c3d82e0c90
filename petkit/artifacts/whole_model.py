"""The `petkit.json` of a whole model, merged or distilled, beside the files that transformers loads."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from petkit.artifacts.kinds import kind_of, read_kind
from petkit.artifacts.manifest import Step
from petkit.artifacts.paths import open_inside
from petkit.artifacts.tensor_file import Place, locate_tensors
from petkit.errors import ArtifactError


class WholeModel(BaseModel):
    """What the `petkit.json` of every whole model holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    schema_version: Literal[1] = 1
    kind: str
    base: str | None = None
    """Folder or name of what the model was made from."""

    lineage: tuple[Step, ...] = ()
    weights_sha256: str
    """Of the shards' bytes, one behind the other."""

    files: dict[str, str] = {}
    """SHA-256 of the files beside the weights, such as config.json and the tokenizer's."""

    def facts(self) -> list[tuple[str, str]]:
        """What `inspect` says of it."""
        return [("base", self.base or "none")]

    @property
    def origin(self) -> str:
        """How it came to be, in a few words."""
        return self.kind


class MergedManifest(WholeModel):
    """The content of a merged model's `petkit.json`."""

    kind: Literal["merged"] = "merged"
    method: str
    models: tuple[str, ...]
    """Folders that were merged, in the order of their weights; `base` is what they were fine-tuned from."""

    merge: dict[str, Any]
    """The configuration as it was read."""

    seed: int

    def facts(self) -> list[tuple[str, str]]:
        """What `inspect` says of it."""
        models = [("model", one) for one in self.models]
        return [("method", f"{self.method}, seed {self.seed}"), *super().facts(), *models]

    @property
    def origin(self) -> str:
        """How it came to be, in a few words."""
        return f"merged by {self.method}"


class DistilledManifest(WholeModel):
    """The content of a distilled student's `petkit.json`, all of whose weights have learnt."""

    kind: Literal["distilled"] = "distilled"
    objective: str
    teachers: tuple[str, ...]
    """Names of the teachers; `base` is the student before."""

    def facts(self) -> list[tuple[str, str]]:
        """What `inspect` says of it."""
        teachers = [("teacher", one) for one in self.teachers]
        return [("method", self.objective), *super().facts(), *teachers]

    @property
    def origin(self) -> str:
        """How it came to be, in a few words."""
        return f"distilled by {self.objective}"


KINDS: dict[str, type[WholeModel]] = {"merged": MergedManifest, "distilled": DistilledManifest}


def read_merged(folder: str | os.PathLike[str]) -> MergedManifest:
    """Read a merged model's `petkit.json`.

    Raises:
        ArtifactError: it is broken, of another kind or of a later version.
        InputError: there is none.
    """
    return read_kind(Path(folder), "merged", MergedManifest)


def read_whole(folder: str | os.PathLike[str]) -> WholeModel:
    """Read the `petkit.json` of a whole model of any kind.

    Raises:
        ArtifactError: it is broken, of another kind or of a later version.
        InputError: there is none.
    """
    kind = kind_of(folder) or "merged"
    return read_kind(Path(folder), kind, KINDS.get(kind, MergedManifest))


def shards_of(folder: Path) -> list[str]:
    """The files of a whole model's weights, in the order in which they were written.

    Raises:
        ArtifactError: there is none.
    """
    found = sorted(path.name for path in folder.glob("model*.safetensors"))
    if not found:
        raise ArtifactError(f"{folder} has no model.safetensors: it was not finished, or not copied whole")
    return found


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the bytes of all shards, one behind the other.

    Raises:
        ArtifactError: there is none, or one cannot be read.
    """
    digest = hashlib.sha256()
    for name in shards_of(folder):
        with open_inside(folder, name) as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def whole_tensors(folder: Path) -> dict[str, Place]:
    """Where the tensors of a whole model lie, by the headers of its shards.

    Raises:
        ArtifactError: a shard is damaged.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    found: dict[str, Place] = {}
    for name in shards_of(folder):
        found |= locate_tensors(folder, name)
    return found


def check_weights(folder: Path, manifest: WholeModel) -> None:
    """Refuse shards that are not the ones that were written.

    Raises:
        ArtifactError: they have another hash than `petkit.json` says.
    """
    found = weights_sha256(folder)
    if found != manifest.weights_sha256:
        raise ArtifactError(
            f"the shards of {folder} have sha256 {found}, petkit.json says {manifest.weights_sha256}: one "
            "was altered or exchanged"
        )


def check_files(folder: Path, manifest: WholeModel) -> None:
    """Refuse files beside the weights that are not the ones that were written.

    Raises:
        ArtifactError: one is missing, or has another hash than `petkit.json` says.
        SafetyError: a link that leaves the folder.
    """
    for name, wanted in manifest.files.items():
        try:
            with open_inside(folder, name) as file:
                found = hashlib.sha256(file.read()).hexdigest()
        except FileNotFoundError:
            raise ArtifactError(f"{folder / name} is missing, which was written with the weights") from None
        if found != wanted:
            raise ArtifactError(f"{folder / name} was altered: petkit.json says another sha256, {wanted}")


def is_whole(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a whole model, sound or not."""
    return kind_of(folder) in KINDS
