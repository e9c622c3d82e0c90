"""The `petkit.json` of a merged model, beside the files that transformers loads. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from petkit.artifacts.kinds import kind_of, read_kind
from petkit.artifacts.manifest import Step


class MergedManifest(BaseModel):
    """The content of a merged model's `petkit.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    kind: Literal["merged"] = "merged"
    method: str
    base: str | None = None
    """Folder of what the models were fine-tuned from."""

    models: tuple[str, ...]
    """Folders that were merged, in the order of their weights."""

    lineage: tuple[Step, ...] = ()
    merge: dict[str, Any]
    """The configuration as it was read."""

    seed: int
    weights_sha256: str
    """Of the shards' bytes, one behind the other."""


def read_merged(folder: str | os.PathLike[str]) -> MergedManifest:
    """Read a merged model's `petkit.json`.

    Raises:
        ArtifactError: it is broken, of another kind or of a later version.
        InputError: there is none.
    """
    return read_kind(Path(folder), "merged", MergedManifest)


def is_merged(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a merged model, sound or not."""
    return kind_of(folder) == "merged"
