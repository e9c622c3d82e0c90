"""The hash of a base model that a command line names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petkit.cli import output
from petkit.errors import PetkitError

SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def wanted_base(base: str, artifact: Path) -> str:
    """Return the hash of the base that an artifact must belong to.

    Args:
        base: a SHA-256 in hexadecimal digits, or a model as `model.name` of a recipe.
        artifact: its recorded model settings and task go with the name.

    Returns:
        Hexadecimal SHA-256 of the frozen weights.

    Raises:
        PetkitError: the model cannot be loaded.
    """
    if SHA256.fullmatch(base):
        return base.lower()
    from petkit.artifacts.reader import read_manifest
    from petkit.methods.binary_adapter.recorded import check_sections

    manifest = read_manifest(artifact)
    check_sections(manifest, artifact)
    return hash_base(base, manifest.model, manifest.task.type if manifest.task else None)


def hash_base(base: str, model: Mapping[str, Any], task: str | None) -> str:
    """Load a model and return the hash of its frozen weights.

    Args:
        base: as `model.name` of a recipe, or a file of weights.
        model: the settings of the recipe's `model:` section that belong to the architecture.
        task: what the head is for; None stands for image classification.

    Returns:
        Hexadecimal SHA-256.

    Raises:
        PetkitError: the model cannot be loaded.
    """
    from petkit.models.config import ModelConfig
    from petkit.models.loading import load_model, relocated

    kind = task or "image_classification"
    output.log(f"hashing the weights of {base}")
    config = ModelConfig(**relocated(model, base))
    try:
        return load_model(config, kind).base_sha256  # type: ignore[arg-type]
    except PetkitError as error:
        # Here the model stands in a flag, not in a recipe.
        reason = re.sub(r"^model\.(name|weights)", "--base", str(error))
        raise type(error)(f"--base {base} does not load as the artifact's kind ({kind}): {reason}") from error
