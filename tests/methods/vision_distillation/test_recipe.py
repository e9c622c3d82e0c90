from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from petkit.artifacts import read_artifact
from petkit.errors import ConfigError, GateError, InputError
from petkit.methods.binary_adapter.evaluation import evaluate_artifact
from petkit.methods.vision_distillation import recipe
from petkit.methods.vision_distillation.config import VisionDistillationConfig
from petkit.training.checkpoint import newest
from petkit.training.context import RunContext
from tests.methods.vision_distillation import tiny

TENSORS = "adapter_packed.safetensors"


def plan_of(output: Path, teacher: str, **changes: Any) -> dict[str, Any]:
    config = VisionDistillationConfig.model_validate(tiny.content(output, teacher, **changes))
    return recipe.plan(config, RunContext(output))


def test_a_run_leaves_an_ordinary_adapter_that_knows_its_teacher(teacher: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = tiny.run(folder, teacher)
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    (step,) = manifest.lineage
    assert (step.command, set(step.inputs)) == ("distill", {"base", "teacher"})
    assert step.inputs["teacher"] == result["teacher"]["sha256"]
    assert manifest.task is not None
    assert (manifest.task.classes, manifest.task.preprocess.image_size) == (tiny.CLASSES, 32)
    # Nothing of the teacher or of the map to its features is kept.
    assert set(artifact.raw_dense) == {"head.weight", "head.bias"}
    assert len(artifact.packed) == 12
    assert json.loads((folder / "result.json").read_text()) == result
    assert json.loads((folder / "checks.json").read_text())["ok"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["kind"], config["teacher"]["model"]) == ("vision", teacher)
    assert (result["status"], result["n"], result["split"]) == ("completed", 10, "test")
    again = evaluate_artifact(folder)
    assert again.accuracy == result["accuracy"]


def test_the_teacher_is_measured_beside_its_student(teacher: str, tmp_path: Path) -> None:
    result = tiny.run(tmp_path / "run", teacher, data__test_size=60)
    found = result["teacher"]
    # The teacher's own recipe measured 10 of these; its accuracy on all 60 is that of the artifact itself.
    from petkit.data.config import DataConfig
    from petkit.methods.binary_adapter.evaluation import evaluate_adapted, load_split
    from petkit.models.loading import load_adapted

    adapted = load_adapted(teacher)
    own = evaluate_adapted(adapted, load_split(adapted, DataConfig(test_size=60), "test", 0), "cpu", 10)
    assert (found["accuracy"], found["n"]) == (own.accuracy, 60)
    assert found["interval"] == list(own.interval)
    assert 0 <= found["agreement"] <= 1
    assert found["id"] == teacher
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"`{teacher}`, sha256 `{found['sha256']}`" in card
    assert f"accuracy {found['accuracy']:.1%}" in card
    assert f"{found['agreement']:.1%} of the examples" in card


def test_every_step_records_what_is_learnt(teacher: str, tmp_path: Path) -> None:
    tiny.run(tmp_path / "run", teacher)
    rows = tiny.records(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        parts = row["cross_entropy"] * 0.5 + 0.5 * 16 * row["kl"] + row["feature_distance"]
        assert row["loss"] == pytest.approx(parts, rel=1e-4)
        assert 0 <= row["agreement"] <= 1


def test_a_student_comes_to_answer_as_its_teacher(teacher: str, tmp_path: Path) -> None:
    long = {"training__epochs": 20, "training__learning_rate": 0.02}
    tiny.run(tmp_path / "run", teacher, distillation={"alpha": 1.0, "feature_weight": 1.0}, **long)
    rows = tiny.records(tmp_path / "run")
    for name in ("kl", "feature_distance"):
        assert rows[-1][name] < 0.7 * rows[0][name]
    assert rows[-1]["agreement"] > rows[0]["agreement"]


def test_features_may_teach_alone(tmp_path: Path) -> None:
    weights = tiny.save_weights(tmp_path / "t.safetensors", 7)
    changes = {
        "distillation": {"alpha": 0.0, "feature_weight": 1.0},
        "teacher__weights": weights,
        "teacher__image_size": 48,
    }
    result = tiny.run(tmp_path / "run", "timm/test_vit", **changes)
    assert set(result["teacher"]) == {"id", "sha256"}
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| teacher | `timm/test_vit`" in card
    assert "teacher on the test split" not in card
    assert "kl" not in tiny.records(tmp_path / "run")[0]
    planned = plan_of(tmp_path / "plan", "timm/test_vit", **changes)
    assert planned["learns"] == ["labels", "features"]


def test_logits_may_teach_a_linear_probe(teacher: str, tmp_path: Path) -> None:
    changes = {"adapter": {"method": "linear_probe"}, "distillation": {"alpha": 0.5}}
    result = tiny.run(tmp_path / "run", teacher, **changes)
    assert (result["trainable_parameters"], result["bytes"]["adapter"]) == (650, 0)


def test_a_teacher_of_transformers_and_a_student_that_is_one(tmp_path: Path) -> None:
    from tests.methods.vision_distillation.test_teacher import save_transformers

    folder = save_transformers(tmp_path / "vit")
    changes = {"student": {"model": {"name": folder}}, "adapter__method": "lora"}
    result = tiny.run(tmp_path / "run", folder, **changes)
    assert result["status"] == "completed"


def test_the_same_seed_gives_the_same_bytes(teacher: str, tmp_path: Path) -> None:
    tensors = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tiny.run(tmp_path / name, teacher, seed=seed, training__max_steps=2, adapter__dropout=0.5)
        tensors.append((tmp_path / name / TENSORS).read_bytes())
    assert tensors[0] == tensors[1] != tensors[2]


def test_a_stopped_run_goes_on_to_the_same_bytes(teacher: str, tmp_path: Path) -> None:
    whole = tiny.run(tmp_path / "whole", teacher, adapter__dropout=0.3)
    tiny.run(tmp_path / "part", teacher, adapter__dropout=0.3, training__max_steps=3)
    checkpoint = newest(tmp_path / "part")
    # The map to the teacher's features and its moments are kept with the rest.
    from safetensors.torch import load_file

    assert "projector.weight" in load_file(checkpoint / "weights.safetensors")
    assert "exp_avg.projector.weight" in load_file(checkpoint / "optimizer.safetensors")
    resumed = tiny.run(tmp_path / "part", teacher, {"resume": checkpoint}, adapter__dropout=0.3)
    assert (tmp_path / "part" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    assert (resumed["steps"], resumed["accuracy"]) == (whole["steps"], whole["accuracy"])
    told = [
        [
            {name: value for name, value in row.items() if "per_second" not in name}
            for row in tiny.records(one)
        ]
        for one in (tmp_path / "whole", tmp_path / "part")
    ]
    assert told[0] == told[1]


def test_another_teacher_is_refused_on_resume(teacher: str, tmp_path: Path) -> None:
    tiny.run(tmp_path / "run", teacher, training__max_steps=1)
    checkpoint = newest(tmp_path / "run")
    manifest = Path(teacher, "petkit.json")
    before = manifest.read_bytes()
    content = json.loads(before)
    content["lineage"][0]["created"] = "2020-01-01T00:00:00Z"
    manifest.write_text(json.dumps(content))
    try:
        with pytest.raises(ConfigError, match=r"teacher\.sha256"):
            tiny.run(tmp_path / "run", teacher, {"resume": checkpoint})
    finally:
        manifest.write_bytes(before)
    with pytest.raises(ConfigError, match=r"distillation\.alpha: 0\.5 -> 0\.9"):
        tiny.run(tmp_path / "run", teacher, {"resume": checkpoint}, distillation__alpha=0.9)


def test_validation_selects(teacher: str, tmp_path: Path) -> None:
    changes = {"training__select": "validation", "training__evaluate_every": 1, "training__epochs": 3}
    result = tiny.run(tmp_path / "run", teacher, **changes)
    assert result["best_step"] in (2, 4, 6)
    scores = [row["eval_accuracy"] for row in tiny.records(tmp_path / "run") if "eval_accuracy" in row]
    assert len(scores) == 3


def test_accumulation_is_one_large_batch(teacher: str, tmp_path: Path) -> None:
    losses = []
    for name, parts in (("a", 1), ("b", 5)):
        tiny.run(tmp_path / name, teacher, training__gradient_accumulation=parts)
        losses.append([row["loss"] for row in tiny.records(tmp_path / name)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_half_precision_runs(teacher: str, tmp_path: Path) -> None:
    result = tiny.run(tmp_path / "run", teacher, training__precision="bf16", training__max_steps=2)
    assert result["status"] == "completed"


def test_a_plan_says_what_a_run_does(teacher: str, tmp_path: Path) -> None:
    planned = plan_of(tmp_path / "run", teacher)
    assert not (tmp_path / "run").exists()
    result = tiny.run(tmp_path / "run", teacher)
    assert planned["trainable_parameters"] == result["trainable_parameters"]
    assert planned["bytes"] == result["bytes"]
    assert planned["steps"]["total"] == result["steps"]
    assert planned["teacher"]["sha256"] == result["teacher"]["sha256"]
    assert (planned["teacher"]["image_size"], planned["teacher"]["features"]) == (48, 64)
    assert planned["learns"] == ["labels", "logits", "features"]
    assert planned["memory_bytes"]["total"] > 0


def test_unreadable_pictures_are_left_out_of_both_views(teacher: str, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for split in ("train", "test"):
        for number, name in enumerate(tiny.CLASSES):
            folder = tmp_path / "images" / split / f"{number}-{name}"
            folder.mkdir(parents=True)
            Image.fromarray(np.full((9, 9, 3), 20 * number, np.uint8)).save(folder / "0.png")
    bad = tmp_path / "images" / "train" / "0-t-shirt" / "bad.png"
    bad.write_bytes(b"no picture")
    data = {"format": "image_folder", "path": str(tmp_path / "images")}
    weights = tiny.save_weights(tmp_path / "t.safetensors")
    changes = {"data": data, "teacher__weights": weights, "training__batch_size": 5}
    with pytest.raises(InputError, match=r"bad\.png"):
        tiny.run(tmp_path / "run", "timm/test_vit", **changes)
    changes["data"] = {**data, "skip_bad": True}
    result = tiny.run(tmp_path / "run", "timm/test_vit", **changes)
    assert (result["n"], result["steps"]) == (10, 4)
    # Classes of an artifact with other names.
    with pytest.raises(ConfigError, match="got 't-shirt' as class 0 where the data has '0-t-shirt'"):
        tiny.run(tmp_path / "other", teacher, data=changes["data"], training__batch_size=5)
    assert not (tmp_path / "other").exists()


def test_a_reloaded_artifact_that_behaves_otherwise_fails_the_gate(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recipe.load_adapted

    def damaged(*arguments: Any, **named: Any) -> Any:
        adapted = real(*arguments, **named)
        with torch.no_grad():
            adapted.model.head.bias[0] += 5
        return adapted

    monkeypatch.setattr(recipe, "load_adapted", damaged)
    with pytest.raises(GateError, match="same logits: largest difference 5"):
        tiny.run(tmp_path / "run", teacher, training__max_steps=1)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "gate_failed"
