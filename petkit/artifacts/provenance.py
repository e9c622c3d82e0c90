"""Where an artifact comes from: hashes of models and files, and the steps of its history."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petkit import __version__
from petkit.artifacts.dense import to_raw
from petkit.artifacts.manifest import Step
from petkit.errors import InputError

if TYPE_CHECKING:
    import torch


def state_dict_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Hash the tensors of a model, whatever order or file they came in.

    Args:
        state: tensors by name; the caller leaves out adapters and a newly made head.

    Returns:
        Hexadecimal SHA-256 over the tensors in the order of their names. Each adds the line
        `<name> <dtype> <shape joined by x>` with a line feed, then its bytes, little-endian and row-major.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        raw = to_raw(state[name])
        digest.update(f"{name} {raw.dtype} {'x'.join(map(str, raw.shape))}\n".encode())
        digest.update(raw.data.data)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def step(
    command: str, config: Mapping[str, Any] | None = None, inputs: Mapping[str, str | Path] = {}
) -> Step:
    """Describe the command that is running, for an artifact's lineage.

    Args:
        command: verb and kind, such as `train adapter`.
        config: the resolved configuration, hashed as its YAML text.
        inputs: by name, a SHA-256 already known (str) or a file to hash (Path).

    Returns:
        The step, with this petkit's version and the time of SOURCE_DATE_EPOCH, or else of the clock.
    """
    from petkit.configuration import dump_yaml

    hashes = {
        name: file_sha256(value) if isinstance(value, Path) else value for name, value in inputs.items()
    }
    config_sha256 = None if config is None else hashlib.sha256(dump_yaml(config).encode()).hexdigest()
    return Step(
        command=command, version=__version__, config_sha256=config_sha256, inputs=hashes, created=_now()
    )


def _now() -> str:
    # The reproducible-builds variable makes two runs of one command give the same bytes.
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = (
        datetime.fromtimestamp(int(epoch), timezone.utc) if epoch.isdigit() else datetime.now(timezone.utc)
    )
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
