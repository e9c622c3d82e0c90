"""What commands that change adapters start from: petkit's artifacts, and PEFT's LoRA folders read as such."""

from __future__ import annotations

import os
from pathlib import Path

from petkit.artifacts.importing import import_peft, write_imported
from petkit.artifacts.kinds import kind_of
from petkit.artifacts.paths import NAME
from petkit.artifacts.peft_lora import CONFIG_FILE
from petkit.artifacts.reader import MANIFEST, TENSORS, Artifact, read_artifact
from petkit.errors import InputError

MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")


def read_source(folder: str | os.PathLike[str], scratch: Path) -> Artifact:
    """Read an adapter.

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


def is_adapter_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is an adapter, of petkit or of PEFT, sound or not.

    A folder that holds a whole model too is a model.
    """
    path = Path(folder)
    if any((path / name).exists() for name in MODEL_FILES):
        return False
    if (path / MANIFEST).exists():
        # A manifest that is broken states no kind; its reader says what is wrong with it.
        return kind_of(path) == "adapter" or (kind_of(path) is None and (path / TENSORS).exists())
    return (path / CONFIG_FILE).exists()
