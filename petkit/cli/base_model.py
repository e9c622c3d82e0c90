"""The hash of a base model that a command line names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petkit.cli import output
from petkit.errors import ConfigError, PetkitError

if TYPE_CHECKING:
    from petkit.models.loaded import LoadedModel

SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def wanted_base(base: str, artifact: Path) -> str:
    """Return the hash of the base that an artifact must belong to.

    Args:
        base: a SHA-256 in hexadecimal digits, a model as `model.name` of a recipe, or, for a router, a served
            one.
        artifact: its recorded model settings and task go with the name.

    Returns:
        Hexadecimal SHA-256 of the frozen weights.

    Raises:
        PetkitError: the model cannot be loaded.
    """
    if SHA256.fullmatch(base):
        return base.lower()
    from petkit.artifacts.reader import read_manifest
    from petkit.artifacts.router import is_router
    from petkit.artifacts.tagger import is_tagger, read_manifest_of
    from petkit.artifacts.translator import is_translator
    from petkit.methods.binary_adapter.recorded import check_sections
    from petkit.methods.edrm.writers import load_language_model
    from petkit.models.config import ModelConfig
    from petkit.models.loading import relocated
    from petkit.rollout.endpoint import is_endpoint, parse_endpoint

    if is_router(artifact):
        if is_endpoint(base):
            return parse_endpoint(base).sha256
        return load_language_model(base).sha256
    if is_translator(artifact):
        raise ConfigError(f"--base has no effect on {artifact}: all of a translator's weights are its own")
    if is_tagger(artifact):
        own = ModelConfig(name=read_manifest_of(artifact).tagger["model"]["encoder"])
        return load_base(base, relocated(own.model_dump(), base), "text_classification").base_sha256
    manifest = read_manifest(artifact)
    check_sections(manifest, artifact)
    section = relocated(manifest.model, base)
    return load_base(base, section, manifest.task.type if manifest.task else None).base_sha256


def load_base(base: str, section: Mapping[str, Any], task: str | None, classes: int = 0) -> LoadedModel:
    """Load a base model for its hash.

    Args:
        base: as the command line names it, for messages.
        section: the recipe's `model:` section that finds it.
        task: what the head is for; None stands for image classification.
        classes: rows of the head; 0 is no head.

    Returns:
        The model.

    Raises:
        PetkitError: the model cannot be loaded.
    """
    from petkit.models.config import ModelConfig
    from petkit.models.loading import load_model

    kind = task or "image_classification"
    output.log(f"hashing the weights of {base}")
    try:
        return load_model(ModelConfig(**section), kind, classes)  # type: ignore[arg-type]
    except PetkitError as error:
        # Here the model stands in a flag, not in a recipe.
        reason = re.sub(r"^model\.(name|weights)", "--base", str(error))
        raise type(error)(f"--base {base} does not load as the artifact's kind ({kind}): {reason}") from error


def class_names(loaded: LoadedModel, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a transformers model has for its classes.

    Args:
        loaded: the model.
        known: the adapter's own, numbers perhaps; empty where it uses the model's classifier as it is.

    Returns:
        The model's names, or numbers where it has none; none where it has not as many classes as the adapter.
    """
    from petkit.models.own_classifier import OwnClassifier

    backbone = getattr(loaded.model, "backbone", None)
    if not known and not isinstance(loaded.model, OwnClassifier):
        return ()
    names = getattr(getattr(backbone, "config", None), "id2label", None) or {}
    found = tuple(str(names[index]) for index in sorted(names))
    if found == tuple(f"LABEL_{index}" for index in range(len(found))):
        found = tuple(map(str, range(len(found))))
    fits = len(set(found)) == len(found) and (not known or len(found) == len(known))
    return found if fits else ()
