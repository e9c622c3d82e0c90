import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from petkit.artifacts import read_artifact
from petkit.errors import ConfigError, GateError, InputError
from petkit.methods.binary_adapter import recipe
from petkit.methods.binary_adapter.config import BinaryAdapterConfig
from petkit.methods.binary_adapter.evaluation import evaluate_artifact
from petkit.training import adapting
from petkit.training.checkpoint import newest
from petkit.training.context import RunContext

Make = Callable[..., BinaryAdapterConfig]


def run(config: BinaryAdapterConfig, **context: Any) -> dict[str, Any]:
    result = recipe.run(config, RunContext(Path(config.output), **context))
    assert result is not None
    return result


def test_a_run_leaves_a_complete_artifact(image_recipe: Make) -> None:
    config = image_recipe(training={"select": "validation", "evaluate_every": 1})
    result = run(config)
    folder = Path(config.output)
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    assert manifest.task is not None
    assert manifest.task.preprocess is not None
    assert manifest.task.preprocess.image_size == 32
    assert len(manifest.task.classes) == 10
    assert manifest.adapter["bits"] == 1
    assert [step.command for step in manifest.lineage] == ["train adapter"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["select"] == "validation"
    assert json.loads((folder / "result.json").read_text()) == result
    checks = json.loads((folder / "checks.json").read_text())
    assert checks["ok"]
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == result["steps"] == result["total_steps"]
    assert state["best_global_step"] == result["best_step"]
    assert {path.name for path in folder.glob("checkpoint-*")} <= {
        f"checkpoint-{step}" for step in range(100)
    }
    card = (folder / "README.md").read_text()
    assert f"{result['accuracy']:.1%}" in card
    assert str(manifest.base.sha256) in card
    assert (result["status"], result["stopped"], result["n"]) == ("completed", None, 20)


def test_result_counts_the_bytes_that_the_file_holds(image_recipe: Make) -> None:
    config = image_recipe(training={"max_steps": 1})
    result = run(config)
    artifact = read_artifact(config.output)
    sizes = result["bytes"]
    assert sizes["adapter"] + sizes["head"] == artifact.nbytes
    # 6 blocks, two matrices of 4 x 64 bits and two floats each; the head is 10 x (64 + 1) floats.
    assert sizes["adapter"] == 6 * 2 * (4 * 64 // 8 + 8)
    assert sizes["head"] == 4 * 10 * 65
    assert sizes["ratio"] == pytest.approx(sizes["full_model_fp32"] / artifact.nbytes)


def test_evaluating_the_artifact_again_gives_the_number_in_result(image_recipe: Make) -> None:
    config = image_recipe()
    result = run(config)
    for mode in ("packed", "dense"):
        again = evaluate_artifact(Path(config.output), mode=mode)
        assert (again.accuracy, again.n) == (result["accuracy"], result["n"])
        assert again.loss == pytest.approx(result["loss"], rel=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(image_recipe: Make) -> None:
    tensors = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(image_recipe(name, seed, training={"max_steps": 2}, adapter={"dropout": 0.5}))
        tensors.append(Path(image_recipe(name).output, "adapter_packed.safetensors").read_bytes())
    assert tensors[0] == tensors[1]
    assert tensors[0] != tensors[2]


def test_adapters_learn_the_sample(image_recipe: Make) -> None:
    config = image_recipe(
        adapter={"bottleneck": 8, "scale": 1.0},
        data={"train_size": 60, "test_size": 100},
        training={"epochs": 25, "batch_size": 20, "learning_rate": 0.01},
    )
    result = run(config)
    losses = [
        json.loads(line)["loss"] for line in Path(config.output, "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.5 * losses[0]
    # Chance is 0.1; even a random backbone tells trousers from bags.
    assert result["interval"][0] > 0.1


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "lora", "bits": 2},
        {"method": "houlsby", "bits": 4},
        {"method": "adaptformer", "bits": 8, "head": "binary"},
        {"method": "adaptformer", "bits": 32},
        {"method": "adaptformer", "codebook": "petl_vit", "gradient": "identity"},
    ],
)
def test_every_kind_of_adapter_passes_its_check(image_recipe: Make, adapter: dict[str, Any]) -> None:
    result = run(image_recipe(adapter=adapter, training={"epochs": 1, "learning_rate": 0.01}))
    assert result["status"] == "completed"


def test_a_linear_probe_trains_the_head_alone(image_recipe: Make) -> None:
    config = image_recipe()
    config = config.model_copy(update={"adapter": type(config.adapter)(method="linear_probe")})
    result = run(config)
    assert result["bytes"]["adapter"] == 0
    assert result["trainable_parameters"] == 10 * 65


def test_text_classification(bert: Path, texts: Path, tmp_path: Path) -> None:
    config = BinaryAdapterConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "task": "text_classification",
            "model": {"name": str(bert)},
            "adapter": {"method": "lora", "bottleneck": 4, "scale": 10.0},
            "data": {"format": "text", "path": str(texts), "max_length": 16},
            "training": {"epochs": 30, "batch_size": 16, "learning_rate": 0.02, "warmup_epochs": 1},
        }
    )
    result = run(config)
    assert result["accuracy"] > 0.8
    assert set(result["per_class"]) == {"good", "bad"}
    assert "images_per_second" not in result
    assert evaluate_artifact(tmp_path / "run").accuracy == result["accuracy"]


def test_chat_fine_tuning(llama: Path, chats: Path, tmp_path: Path) -> None:
    config = BinaryAdapterConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "task": "causal_lm",
            "model": {"name": str(llama)},
            "adapter": {"method": "adaptformer", "bottleneck": 8, "dropout": 0.0},
            "data": {"format": "chat", "path": str(chats), "max_length": 32},
            "training": {"epochs": 30, "batch_size": 8, "learning_rate": 0.02, "warmup_epochs": 1},
        }
    )
    result = run(config)
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.6 * losses[0]
    assert result["unit"] == "tokens"
    assert result["perplexity"] > 1
    # 8 answers of 4 targets each: three words and the end of the turn.
    assert result["n"] == 32
    assert "perplexity" in (tmp_path / "run" / "README.md").read_text()


def test_validation_is_held_out_only_when_it_selects(image_recipe: Make) -> None:
    context = RunContext(Path("unused"))
    ready = recipe.prepare(image_recipe(), context)
    assert ready.train is ready.splits.everything
    assert ready.used["validation"] is None
    selecting = recipe.prepare(image_recipe(training={"select": "validation"}), context)
    assert selecting.train is selecting.splits.train
    assert selecting.used["validation"] is selecting.splits.validation


def test_the_test_split_changes_nothing_that_is_kept(image_recipe: Make) -> None:
    kept = []
    for name, size in (("a", 20), ("b", 30)):
        config = image_recipe(
            name, data={"test_size": size}, training={"select": "validation", "evaluate_every": 1}
        )
        run(config)
        kept.append(Path(config.output, "adapter_packed.safetensors").read_bytes())
    assert kept[0] == kept[1]


def test_resuming_with_other_settings_is_refused_before_training(image_recipe: Make) -> None:
    config = image_recipe(training={"max_steps": 1})
    run(config)
    checkpoint = newest(Path(config.output))
    changed = image_recipe(adapter={"bottleneck": 8})
    with pytest.raises(ConfigError, match=r"adapter\.bottleneck: 4 -> 8"):
        recipe.prepare(changed, RunContext(Path(config.output), resume=checkpoint))
    allowed = image_recipe(training={"checkpoint_every": 5})
    assert run(allowed, resume=checkpoint)["stopped"] is None


def test_another_base_is_refused_on_resume(image_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = image_recipe(training={"max_steps": 1})
    run(config)
    real = adapting.load_model

    def other(*arguments: Any, **named: Any) -> Any:
        loaded = real(*arguments, **named)
        return type(loaded)(**{**loaded.__dict__, "base_sha256": "0" * 64})

    monkeypatch.setattr(adapting, "load_model", other)
    with pytest.raises(ConfigError, match=r"model\.sha256"):
        run(config, resume=newest(Path(config.output)))


def test_a_reloaded_artifact_that_behaves_otherwise_fails_the_gate(
    image_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recipe.load_adapted

    def damaged(*arguments: Any, **named: Any) -> Any:
        adapted = real(*arguments, **named)
        with torch.no_grad():
            adapted.model.head.bias[0] += 5
        return adapted

    monkeypatch.setattr(recipe, "load_adapted", damaged)
    config = image_recipe(training={"max_steps": 1})
    with pytest.raises(GateError, match="same logits: largest difference 5"):
        run(config)
    folder = Path(config.output)
    assert not json.loads((folder / "checks.json").read_text())["ok"]
    assert json.loads((folder / "result.json").read_text())["status"] == "gate_failed"


def test_a_full_folder_is_refused(image_recipe: Make) -> None:
    config = image_recipe(training={"max_steps": 1})
    run(config)
    with pytest.raises(InputError, match="not empty"):
        run(config)
    assert run(config, overwrite=True)["status"] == "completed"


def test_a_plan_says_what_a_run_does(image_recipe: Make) -> None:
    config = image_recipe(training={"gradient_accumulation": 2})
    planned = recipe.plan(config, RunContext(Path(config.output)))
    assert not Path(config.output).exists()
    result = run(config)
    assert planned["trainable_parameters"] == result["trainable_parameters"]
    assert planned["bytes"] == result["bytes"]
    assert planned["steps"]["total"] == result["steps"]
    assert planned["adapters"] == [f"blocks.{i}.adaptformer" for i in range(6)]
    assert planned["examples"] == {"train": 40, "validation": None, "test": 20}
    assert planned["memory_bytes"]["total"] == sum(
        planned["memory_bytes"][part] for part in ("weights", "optimizer", "activations")
    )


def test_a_missing_validation_split_is_named(image_recipe: Make, tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / name / "0.png")
    data = {"format": "image_folder", "path": str(tmp_path / "images"), "train_size": None, "test_size": None}
    with pytest.raises(ConfigError, match="needs a validation split"):
        run(image_recipe(data=data, training={"select": "validation", "batch_size": 2}))
    assert run(image_recipe(data=data, training={"batch_size": 2}))["n"] == 2
    (tmp_path / "images" / "test" / "b" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        run(image_recipe("other", data=data, training={"batch_size": 2}))
    assert not (tmp_path / "other").exists()


def test_a_model_whose_standard_deviation_is_0_is_refused_before_training(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes)).save_pretrained(tmp_path / "vit")
    record = {"image_mean": [0.5] * 3, "image_std": [0.5, 0.0, 0.5]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(record))
    sections = {"model": {"name": str(tmp_path / "vit")}, "data": {"train_size": 40, "test_size": 20}}
    config = BinaryAdapterConfig.model_validate({"output": str(tmp_path / "run"), **sections})
    with pytest.raises(InputError, match="must have image_std above 0"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_missing_data_is_named_before_a_model_is_loaded(
    image_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(adapting, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    data = {"format": "vtab", "path": str(tmp_path / "absent"), "train_size": None, "test_size": None}
    config = image_recipe(data=data)
    for start in (recipe.plan, recipe.run):
        with pytest.raises(InputError, match=r"data\.path .*absent is not a folder"):
            start(config, RunContext(Path(config.output)))


def test_a_broken_list_file_is_named_before_a_missing_model(image_recipe: Make, tmp_path: Path) -> None:
    folder = tmp_path / "vtab"
    folder.mkdir()
    (folder / "train800.txt").write_text("images/0.png 0\nimages/1.png\n")
    data = {"format": "vtab", "path": str(folder), "train_size": None, "test_size": None}
    config = image_recipe(data=data, model={"name": "timm/no_such_model"})
    for start in (recipe.plan, recipe.run):
        with pytest.raises(InputError, match=r"train800\.txt:2: expected 'relative/path label'"):
            start(config, RunContext(Path(config.output)))


def test_faulty_rows_are_named_before_a_missing_model(chats: Path, tmp_path: Path) -> None:
    with (chats / "test.jsonl").open("a") as file:
        file.write('{"messages": []}\n{\n')
    sections = {"task": "causal_lm", "model": {"name": str(tmp_path / "absent")}}
    data = {"format": "chat", "path": str(chats)}
    config = BinaryAdapterConfig(output=str(tmp_path / "run"), data=data, **sections)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"test\.jsonl:9: messages must be .*\n.*test\.jsonl:10: "):
        recipe.prepare(config, RunContext(tmp_path / "run"))


def test_changed_data_are_refused_on_resume(image_recipe: Make, tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / name / "0.png")
    data = {"format": "image_folder", "path": str(tmp_path / "images"), "train_size": None, "test_size": None}
    config = image_recipe(data=data, training={"batch_size": 2, "max_steps": 1})
    run(config)
    context = RunContext(Path(config.output), resume=newest(Path(config.output)))
    recipe.prepare(config, context)
    Image.new("RGB", (8, 8), (0, 0, 255)).save(tmp_path / "images" / "train" / "a" / "0.png")
    with pytest.raises(ConfigError, match=r"data\.sha256"):
        recipe.prepare(config, context)
