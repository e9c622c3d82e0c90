"""Every key of the recipe is checked, and does something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from petkit.configuration.sections import leaves
from petkit.methods.vision_distillation.config import VisionDistillationConfig
from tests.methods.vision_distillation import tiny

# key -> (the other value, what must be set besides)
CHANGES_WEIGHTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "distillation__alpha": (0.9, {}),
    "distillation__temperature": (1.0, {}),
    "distillation__feature_weight": (3.0, {}),
    "distillation__feature_loss": ("mse", {}),
    "seed": (1, {}),
}
# The sections of `petkit train adapter` are tested with it; those of the teacher in test_teacher.py.
ELSEWHERE = ("kind", "output", "student.", "adapter.", "data.", "training.", "teacher.")


def test_every_key_has_a_test() -> None:
    keys = {".".join(path) for path, _, _ in leaves(VisionDistillationConfig)}
    own = {key for key in keys if not key.startswith(ELSEWHERE)}
    assert own == {key.replace("__", ".") for key in CHANGES_WEIGHTS}


@pytest.mark.parametrize("key", CHANGES_WEIGHTS)
def test_a_key_changes_the_weights(teacher: str, tmp_path: Path, key: str) -> None:
    value, besides = CHANGES_WEIGHTS[key]
    short = {"training__max_steps": 2, "data__test_size": 10, **besides}
    for name, changes in (("plain", short), ("changed", {**short, key: value})):
        tiny.run(tmp_path / name, teacher, **changes)
    name = "adapter_packed.safetensors"
    assert (tmp_path / "plain" / name).read_bytes() != (tmp_path / "changed" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "text"}, "vision"),
        ({"distillation": {"alpha": 0.0}}, "nothing would be distilled"),
        ({"distillation__alpha": 1.5}, "less than or equal to 1"),
        ({"distillation__temperature": 0.0}, "greater than 0"),
        ({"distillation__feature_weight": -1.0}, "greater than or equal to 0"),
        ({"distillation__feature_loss": "l1"}, "cosine"),
        ({"adapter": {"method": "linear_probe"}}, "keeps the features it has"),
        ({"data": {"format": "text", "path": "x"}}, "data.format must be sample, vtab or image_folder"),
        ({"data": {"format": "vtab"}}, "data.path is required"),
        ({"teacher": {}}, "Field required"),
        ({"student": {}}, "Field required"),
        ({"teacher__name": "x"}, "Extra inputs"),
    ],
)
def test_recipes_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VisionDistillationConfig.model_validate(tiny.content(Path("x"), "timm/test_vit", **changes))


def test_a_recipe_needs_its_kind() -> None:
    content = tiny.content(Path("x"), "timm/test_vit")
    del content["kind"]
    with pytest.raises(ValidationError, match="kind"):
        VisionDistillationConfig.model_validate(content)


def test_a_linear_probe_may_learn_logits() -> None:
    changes = {"adapter": {"method": "linear_probe"}, "distillation": {"alpha": 0.5}}
    config = VisionDistillationConfig.model_validate(tiny.content(Path("x"), "timm/test_vit", **changes))
    assert config.model.name == "timm/test_vit"
    assert config.task == "image_classification"
