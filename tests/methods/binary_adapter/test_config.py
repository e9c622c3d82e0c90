"""Every key of the recipe does something: its run differs in weights or in what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from petkit.configuration.sections import leaves
from petkit.methods.binary_adapter import recipe
from petkit.methods.binary_adapter.config import BinaryAdapterConfig
from petkit.training.context import RunContext

Make = Callable[..., BinaryAdapterConfig]

SHORT = {"epochs": 2, "batch_size": 10, "warmup_epochs": 1}

# key -> (the other value, what must be set besides)
CHANGES_WEIGHTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adapter.method": ("houlsby", {}),
    "adapter.bits": (2, {}),
    "adapter.bottleneck": (8, {}),
    "adapter.scale": (2.0, {}),
    "adapter.dropout": (0.5, {}),
    "adapter.targets": (["fc1"], {"adapter.method": "lora"}),
    "adapter.codebook": ("petl_vit", {"adapter.bits": 8}),
    "adapter.gradient": ("identity", {}),
    "adapter.head": ("binary", {}),
    "model.drop_path_rate": (0.5, {}),
    "model.image_size": (48, {}),
    "training.epochs": (3, {}),
    "training.batch_size": (20, {}),
    "training.gradient_accumulation": (2, {"adapter.dropout": 0.5}),
    "training.learning_rate": (0.01, {}),
    "training.weight_decay": (0.5, {}),
    "training.warmup_epochs": (0, {}),
    "training.warmup_learning_rate": (1e-3, {}),
    "training.min_learning_rate": (1e-3, {}),
    "training.max_gradient_norm": (1e-3, {}),
    "training.drop_last": (False, {"training.batch_size": 17}),
    "training.precision": ("bf16", {}),
    "training.select": ("validation", {}),
    "training.max_steps": (3, {}),
    "training.max_time": ("0.001s", {}),
    "seed": (1, {}),
}
# key -> (the other value, besides, files of the run's folder that show it)
CHANGES_FILES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "training.evaluate_every": (
        2,
        {"training.select": "validation", "training.evaluate_every": 1},
        "metrics.jsonl",
    ),
    "training.evaluate_every_steps": (3, {"training.select": "validation"}, "metrics.jsonl"),
    "training.checkpoint_every": (2, {}, "checkpoint-4"),
    "training.checkpoint_steps": (7, {}, "checkpoint-7"),
    "training.tensorboard": (True, {}, "tensorboard"),
}
# Tested with the layer that reads them, or (output) by every test here.
ELSEWHERE = {
    "output",
    "task",
    "model.name",
    "model.revision",
    "model.pretrained",
    "model.weights",
    "model.pooling",
}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = {"training": dict(SHORT)}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[name] = value
    return sections


def run(make: Make, output: str, values: dict[str, Any]) -> Path:
    config = make(output=output, **nested(values))
    recipe.run(config, RunContext(Path(config.output)))
    return Path(config.output)


def test_every_key_has_a_test() -> None:
    keys = {".".join(path) for path, _, _ in leaves(BinaryAdapterConfig)}
    tested = {*CHANGES_WEIGHTS, *CHANGES_FILES, *ELSEWHERE}
    # The data section is tested with the data layer.
    assert {key for key in keys if not key.startswith("data.")} == tested


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGES_WEIGHTS)
def test_a_key_changes_the_weights(image_recipe: Make, key: str) -> None:
    value, besides = CHANGES_WEIGHTS[key]
    plain = run(image_recipe, "plain", besides)
    changed = run(image_recipe, "changed", {**besides, key: value})
    name = "adapter_packed.safetensors"
    assert (plain / name).read_bytes() != (changed / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGES_FILES)
def test_a_key_changes_what_is_left(image_recipe: Make, key: str) -> None:
    if key == "training.tensorboard":
        pytest.importorskip("tensorboard")
    value, besides, file = CHANGES_FILES[key]
    plain = run(image_recipe, "plain", besides)
    changed = run(image_recipe, "changed", {**besides, key: value})
    if file == "metrics.jsonl":
        assert evaluations(plain) != evaluations(changed)
    else:
        assert (plain / file).exists() != (changed / file).exists()


def evaluations(folder: Path) -> int:
    return sum(
        "eval_loss" in json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"task": "text_classification"},
        {"seed": -1},
        {"model": {}},
        {"model": {"name": "timm/test_vit", "image_size": 0}},
        {"data": {"format": "vtab"}},
        {"adapter": {"method": "lora", "targets": []}},
        {"unknown": 1},
    ],
)
def test_recipes_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BinaryAdapterConfig.model_validate({"output": "x", "model": {"name": "timm/test_vit"}, **bad})
