"""What `petkit quantize` starts from: an artifact of petkit, or a PEFT LoRA folder read as one."""

from __future__ import annotations

import os
from pathlib import Path

from petkit.artifacts import Artifact, read_artifact
from petkit.artifacts.importing import import_peft, write_imported
from petkit.artifacts.paths import NAME
from petkit.artifacts.peft_lora import CONFIG_FILE
from petkit.artifacts.reader import MANIFEST
from petkit.errors import InputError


def read_source(folder: str | os.PathLike[str], scratch: Path) -> Artifact:
    """Read a 32-bit adapter.

    Args:
        folder: an artifact (with petkit.json) or a PEFT adapter (with adapter_config.json).
        scratch: an existing folder in which a PEFT adapter is written as an artifact.

    Returns:
        The artifact; its folder is inside `scratch` when it was a PEFT adapter.

    Raises:
        ArtifactError: it is damaged.
        InputError: it is neither of the two, or has a PEFT feature that petkit cannot keep.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(
            f"ADAPTER must be a folder, got {path}, which is {'a file' if path.exists() else 'not there'}"
        )
    if (path / MANIFEST).exists() or not (path / CONFIG_FILE).exists():
        return read_artifact(path)
    name = path.resolve().name
    converted = scratch / (name if NAME.fullmatch(name) else "adapter")
    return write_imported(import_peft(path), converted)[0]
