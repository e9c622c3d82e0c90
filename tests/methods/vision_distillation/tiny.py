"""Recipes whose runs take a second: a random ViT of six narrow blocks on 40 pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from petkit.methods.binary_adapter import recipe as adapter_recipe
from petkit.methods.binary_adapter.config import BinaryAdapterConfig
from petkit.methods.vision_distillation import recipe
from petkit.methods.vision_distillation.config import VisionDistillationConfig
from petkit.training.context import RunContext

MODEL = {"name": "timm/test_vit", "pretrained": False, "image_size": 32}
CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle-boot"),
)


def save_teacher(folder: Path, **sections: dict[str, Any]) -> str:
    """An artifact of the same classes at another size, with pixels prepared in another way."""
    base: dict[str, dict[str, Any]] = {
        "model": {**MODEL, "image_size": 48},
        "adapter": {"bottleneck": 4},
        "data": {"train_size": 60, "test_size": 10, "normalize": "none", "interpolation": "bilinear"},
        "training": {"epochs": 4, "batch_size": 20, "warmup_epochs": 0, "learning_rate": 0.01},
    }
    merged = {name: {**base[name], **sections.get(name, {})} for name in base}
    config = BinaryAdapterConfig.model_validate({"output": str(folder), **merged})
    assert adapter_recipe.run(config, RunContext(folder)) is not None
    return str(folder)


def save_weights(path: Path, classes: int = 10, name: str = "test_vit") -> str:
    """A weight file of timm with a classifier."""
    torch.manual_seed(1)
    save_file(timm.create_model(name, num_classes=classes).state_dict(), path)
    return str(path)


def content(output: Path, learnt_from: str, **changes: Any) -> dict[str, Any]:
    """A recipe; `teacher__weights="x"` sets a key in a section."""
    found: dict[str, Any] = {
        "kind": "vision",
        "output": str(output),
        "student": {"model": dict(MODEL)},
        "adapter": {"bottleneck": 4, "dropout": 0.0},
        "teacher": {"model": learnt_from},
        "distillation": {"feature_weight": 1.0},
        "data": {"train_size": 20, "test_size": 10},
        "training": {"epochs": 2, "batch_size": 10, "warmup_epochs": 0, "learning_rate": 0.01},
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return found


def run(
    output: Path, learnt_from: str, context: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """A whole run and its result."""
    config = VisionDistillationConfig.model_validate(content(output, learnt_from, **changes))
    result = recipe.run(config, RunContext(output, **(context or {})))
    assert result is not None
    return result


def records(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
