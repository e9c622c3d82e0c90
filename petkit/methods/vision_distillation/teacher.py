"""The teacher: an artifact or a published model, checked against the classes of the data, and its answers."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petkit.artifacts.reader import MANIFEST
from petkit.artifacts.whole_model import is_whole
from petkit.data.images import normalize
from petkit.errors import ConfigError, InputError, PetkitError
from petkit.methods.vision_distillation.config import (
    TeacherConfig,
    VisionDistillationConfig,
    missing_folder,
)
from petkit.models.classifiers import PublishedClassifier, load_classifier, load_features
from petkit.models.config import ModelConfig
from petkit.models.features import logits_and_features
from petkit.models.loading import load_adapted

log = logging.getLogger(__name__)

OF_MODELS = ("revision", "weights", "image_size")


@dataclass(frozen=True)
class Teacher:
    """A frozen model in evaluation mode.

    `last` are the layers that make logits of features; `classifies` says whether its output are logits of the
    data's classes.
    """

    id: str
    sha256: str
    model: nn.Module
    last: tuple[nn.Module, ...]
    preprocess: dict[str, Any]
    classifies: bool
    width: int

    @torch.no_grad()
    def answers(self, pixel_values: Tensor) -> tuple[Tensor | None, Tensor]:
        """Logits (batch, classes), None where it has none of the data's classes, and features (batch, width).

        Raises:
            PetkitError: they are not finite.
        """
        logits, features = logits_and_features(self.model, self.last, pixel_values)
        kept = logits.float() if self.classifies else None
        for name, found in (("logits", kept), ("features", features)):
            if found is not None and not found.isfinite().all():
                raise PetkitError(f"the teacher's {name} must be finite, got nan or inf: {self.id}")
        return kept, features.float()


def load_teacher(config: VisionDistillationConfig, classes: Sequence[str], device: torch.device) -> Teacher:
    """Load the teacher and hold its classes against those of the data.

    A merged or distilled whole model is loaded as what it is: a model in the layout of transformers.

    Args:
        config: the recipe.
        classes: names of the data's classes in the order of their numbers.
        device: where the teacher computes.

    Returns:
        The teacher.

    Raises:
        ConfigError: a key has no effect on this teacher, or its classes are not those of the data.
        InputError: it is a folder that does not exist.
        PetkitError: it cannot be loaded, by kind.
    """
    own = config.teacher
    missing = missing_folder(own.model)
    if missing is not None:
        raise InputError(missing)
    folder = Path(own.model).expanduser()
    with _named_keys():
        if (folder / MANIFEST).exists() and not is_whole(folder):
            found = _of_artifact(own, folder, classes, device)
        else:
            found = _published(own, config.distillation.alpha > 0, classes)
    model = found.model.to(device)
    size = int(found.preprocess["image_size"])
    black = normalize(torch.zeros(1, 3, size, size), found.preprocess["mean"], found.preprocess["std"])
    with torch.no_grad():
        _, features = logits_and_features(model, found.last, black.to(device))
    return Teacher(
        found.base_id,
        found.sha256,
        model,
        found.last,
        found.preprocess,
        found.classes > 0,
        features.shape[1],
    )


@contextmanager
def _named_keys() -> Iterator[None]:
    """Name the teacher's keys in errors of loading, which speak of a recipe's `model` section."""
    try:
        yield
    except PetkitError as error:
        text = str(error).replace("model.name", "teacher.model").replace("--base", "teacher.base")
        text = re.sub(r"(?<![.\w])model\.(revision|weights|image_size)\b", r"teacher.\1", text)
        raise type(error)(text) from error


def _of_artifact(
    own: TeacherConfig, folder: Path, classes: Sequence[str], device: torch.device
) -> PublishedClassifier:
    for name in OF_MODELS:
        if getattr(own, name) is not None:
            raise ConfigError(
                f"teacher.{name} has no effect on an artifact, which records its own: remove it"
            )
    adapted = load_adapted(folder, device, mode="packed", base_override=own.base)
    task = adapted.artifact.manifest.task
    if task is not None and task.type != "image_classification":
        raise InputError(f"teacher.model {folder} must be for image_classification, it is for {task.type}")
    head = adapted.model.get_submodule("head")
    rows = int(head.out_features)  # type: ignore[arg-type]
    _check_classes(str(folder), rows, adapted.classes, classes)
    sha256 = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return PublishedClassifier(
        adapted.model, (head,), own.model, sha256, dict(adapted.preprocess or {}), rows
    )


def _published(own: TeacherConfig, logits: bool, classes: Sequence[str]) -> PublishedClassifier:
    if own.base is not None:
        raise ConfigError("teacher.base has an effect on an artifact only: remove it")
    section = ModelConfig(
        name=own.model, revision=own.revision, weights=own.weights, image_size=own.image_size
    )
    if not logits:
        return load_features(section)
    found = load_classifier(section)
    if found.classes == 0:
        raise ConfigError(
            f"teacher.model {own.model} has no classifier, and distillation.alpha above 0 needs its logits: "
            "train an adapter on it first (`petkit train adapter`) and name that, or learn from its features "
            "alone (distillation.alpha 0, feature_weight 1)"
        )
    _check_classes(own.model, found.classes, found.names, classes)
    return found


def _check_classes(name: str, count: int, own: Sequence[str] | None, classes: Sequence[str]) -> None:
    """Refuse a teacher of other classes, or of the same ones in another order."""
    if count != len(classes):
        raise ConfigError(
            f"teacher.model {name} must have the {len(classes)} classes of the data, got {count}: train an "
            "adapter on it first (`petkit train adapter`) and name that, or learn from its features alone "
            "(distillation.alpha 0, feature_weight 1)"
        )
    # Numbers are what data without names has for them.
    if not own or all(one.isdigit() for one in classes) != all(one.isdigit() for one in own):
        log.warning("the classes of %s have no names to compare: their order is taken to be the data's", name)
        return
    for place, (theirs, wanted) in enumerate(zip(own, classes, strict=True)):
        if theirs != wanted:
            raise ConfigError(
                f"teacher.model {name} must have the classes of the data in their order, got {theirs!r} as "
                f"class {place} where the data has {wanted!r}"
            )
