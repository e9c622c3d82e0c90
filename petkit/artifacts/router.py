"""A router's folder: which model it was calibrated for, and the settings that it routes with. Torch-free."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from petkit.artifacts.checks import CHECKS, Check, checks_json
from petkit.artifacts.dense import to_float32
from petkit.artifacts.files import write_folder
from petkit.artifacts.kinds import kind_of, read_kind
from petkit.artifacts.manifest import Base, Step
from petkit.artifacts.reader import CONFIG, MANIFEST
from petkit.artifacts.tensor_file import read_tensor_file
from petkit.artifacts.writer import check_output
from petkit.configuration import dump_yaml
from petkit.errors import ArtifactError

# The network of a learned router.
NETWORK = "router.safetensors"


class RouterManifest(BaseModel):
    """The content of a router's `petkit.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    schema_version: Literal[1] = 1
    kind: Literal["router"] = "router"
    base: Base
    lineage: tuple[Step, ...] = ()
    router: dict[str, Any]


def write_router(
    folder: str | os.PathLike[str],
    manifest: RouterManifest,
    checks: list[Check],
    files: Mapping[str, bytes],
    overwrite: bool = False,
) -> Path:
    """Write a router's folder, whole or not at all.

    Args:
        folder: final name.
        manifest: what it is.
        checks: what was found out about it.
        files: further files by name.
        overwrite: replace a folder that petkit wrote.

    Returns:
        The folder.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    path = Path(folder)
    check_output(path, overwrite)
    content = manifest.model_dump(mode="json")
    text = {
        MANIFEST: json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n",
        CHECKS: json.dumps(checks_json(checks), indent=2) + "\n",
        CONFIG: dump_yaml(manifest.router),
    }
    write_folder(path, {**files, **{name: value.encode() for name, value in text.items()}})
    return path


def read_router(folder: str | os.PathLike[str]) -> RouterManifest:
    """Read a router's `petkit.json`.

    Raises:
        ArtifactError: it is broken, of another kind or of a later version.
        InputError: there is none.
    """
    return read_kind(Path(folder), "router", RouterManifest)


def read_network_file(folder: Path) -> int:
    """Check the file of a learned router's weights.

    Args:
        folder: the router.

    Returns:
        How many tensors it holds.

    Raises:
        ArtifactError: it is damaged, or a number is not finite.
        FileNotFoundError: it is missing.
    """
    tensors = read_tensor_file(folder, NETWORK).tensors
    for name, raw in tensors.items():
        if not np.isfinite(to_float32(raw)).all():
            raise ArtifactError(f"{folder / NETWORK}: {name} must be finite, got nan or inf")
    return len(tensors)


def is_router(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a router, sound or not."""
    return kind_of(folder) == "router"
