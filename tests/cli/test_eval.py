from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from petkit.cli.main import run

Petkit = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact for the whole module."""
    folder = tmp_path_factory.mktemp("eval")
    recipe = folder / "recipe.yaml"
    content = {
        "output": str(folder / "run"),
        "model": {"name": "timm/test_vit", "pretrained": False, "image_size": 32},
        "adapter": {"bottleneck": 4},
        "data": {"train_size": 40, "test_size": 20},
        "training": {"epochs": 1, "batch_size": 10, "warmup_epochs": 0, "learning_rate": 0.01},
    }
    recipe.write_text(yaml.safe_dump(content))
    assert run(["train", "adapter", str(recipe), "--quiet"]) == 0
    return folder / "run"


def test_the_default_repeats_the_number_of_the_run(petkit: Petkit, trained: Path) -> None:
    before = json.loads((trained / "result.json").read_text())
    result = petkit("eval", trained, "--json")
    assert result.code == 0, result.err
    payload = json.loads(result.out)
    for key in ("accuracy", "interval", "n", "per_class"):
        assert payload[key] == before[key]
    assert (payload["schema_version"], payload["split"], payload["mode"]) == (1, "test", "packed")
    assert payload["examples_per_second"] > 0


def test_text_shows_accuracy_interval_and_rate(petkit: Petkit, trained: Path) -> None:
    result = petkit("eval", trained, "--mode", "dense")
    for part in ("accuracy, 95 % interval", "n 20", "examples/s", "dense"):
        assert part in result.out
    assert result.err == ""


def test_dtype_is_recorded_and_has_an_effect(petkit: Petkit, trained: Path) -> None:
    found = {}
    for flags in ((), ("--dtype", "float32"), ("--dtype", "bfloat16")):
        result = petkit("eval", trained, "--json", *flags)
        assert result.code == 0, result.err
        payload = json.loads(result.out)
        found[flags] = (payload["dtype"], payload["loss"])
    (default, exact), same, (dtype, rounded) = found.values()
    assert (default, dtype) == ("float32", "bfloat16")
    assert same == (default, exact)
    assert rounded != exact
    # A few roundings of 8 bits each.
    assert rounded == pytest.approx(exact, rel=0.03)
    assert "packed, computed in bfloat16" in petkit("eval", trained, "--dtype", "bfloat16").out


def test_data_and_split_can_be_changed(petkit: Petkit, trained: Path) -> None:
    def n(*flags: Any) -> int:
        result = petkit("eval", trained, "--json", *flags)
        assert result.code == 0, result.err
        return int(json.loads(result.out)["n"])

    assert n("--set", "data.test_size=30") == 30
    assert n("--split", "train", "--batch-size", 7) == 40
    assert n("--data", "adapter-smoke") == 100


def test_a_folder_of_images_is_evaluated_with_the_artifacts_classes(
    petkit: Petkit, trained: Path, tmp_path: Path
) -> None:
    for name in ("bag", "sandal"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (28, 28)).save(tmp_path / "test" / name / "0.png")
    result = petkit("eval", trained, "--data", tmp_path, "--json")
    assert result.code == 0, result.err
    per_class = json.loads(result.out)["per_class"]
    assert per_class["coat"] is None
    assert per_class["bag"] is not None
    (tmp_path / "test" / "spaceship").mkdir()
    Image.new("RGB", (28, 28)).save(tmp_path / "test" / "spaceship" / "0.png")
    refused = petkit("eval", trained, "--data", tmp_path)
    assert refused.code == 2
    assert "'spaceship'" in refused.err
    assert "data.allow_unseen_classes" in refused.err


def test_unreadable_files_are_left_out_on_demand(petkit: Petkit, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "test" / "bag").mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(tmp_path / "test" / "bag" / "0.png")
    (tmp_path / "test" / "bag" / "1.png").write_bytes(b"no picture")
    refused = petkit("eval", trained, "--data", tmp_path)
    assert refused.code == 2
    assert "set data.skip_bad" in refused.err
    result = petkit("eval", trained, "--data", tmp_path, "--skip-bad", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["n"] == 1
    assert "left out" in result.err
    assert "set data.skip_bad" not in result.err


def test_the_gate_prints_the_result_and_exits_with_3(petkit: Petkit, trained: Path) -> None:
    accuracy = json.loads((trained / "result.json").read_text())["accuracy"]
    assert petkit("eval", trained, "--min-accuracy", accuracy).code == 0
    result = petkit("eval", trained, "--min-accuracy", 1.0, "--json")
    assert result.code == 3
    assert json.loads(result.out)["accuracy"] == accuracy
    assert "error: accuracy must be at least 1 (--min-accuracy), got" in result.err


def test_the_gate_on_the_loss_exits_with_3(petkit: Petkit, trained: Path) -> None:
    assert petkit("eval", trained, "--max-loss", 100).code == 0
    result = petkit("eval", trained, "--max-loss", 0.001, "--min-accuracy", 1.0, "--json")
    assert result.code == 3
    assert f"got {json.loads(result.out)['loss']:.4f}" in result.err
    assert "error: loss must be at most 0.001 nats (--max-loss)" in result.err
    assert "error: accuracy must be" in result.err


def test_a_gate_for_taggers_is_refused(petkit: Petkit, trained: Path) -> None:
    result = petkit("eval", trained, "--min-f1", 0.5)
    assert (result.code, result.out) == (2, "")
    expected = "--min-f1 is for taggers, and this is for image_classification: use --min-accuracy"
    assert result.err == f"error: {expected}\n"


def test_noise_gives_the_flat_minimum_curve(petkit: Petkit, trained: Path) -> None:
    result = petkit("eval", trained, "--noise", 0.1, "--noise", 3, "--noise-seeds", 2, "--json")
    assert result.code == 0, result.err
    payload = json.loads(result.out)
    assert payload["mode"] == "dense"
    assert [(point["noise"], len(point["draws"])) for point in payload["noise"]] == [(0.1, 2), (3.0, 2)]
    for point in payload["noise"]:
        assert point["accuracy"] == pytest.approx(sum(point["draws"]) / 2)
    low, high = sorted(payload["noise"][1]["draws"])
    mean = (low + high) / 2
    text = petkit("eval", trained, "--noise", 3.0, "--noise-seeds", 2).out
    assert f"{mean:.1%} accuracy, mean of 2 draws; lowest {low:.1%}, highest {high:.1%}" in text
    once = petkit("eval", trained, "--noise", 3.0, "--noise-seeds", 1).out
    assert f"{payload['noise'][1]['draws'][0]:.1%} accuracy, of one draw" in once
    refused = petkit("eval", trained, "--noise", 0.1, "--mode", "packed")
    assert refused.code == 2
    assert "packed bits cannot hold noise" in refused.err
    assert petkit("eval", trained, "--noise", -1).code == 2


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--data", "no-such-recipe"], 2, "no-such-recipe"),
        (["--set", "data.test_size=0"], 2, "data.test_size must be"),
        (["--set", "data.tset_size=3"], 2, "did you mean data.test_size?"),
        (["--device", "cuda:99"], 4, "must name a CUDA device"),
        (["--split", "dev"], 2, "--split"),
        (["--min-accuracy", "2"], 2, "--min-accuracy"),
        (["--dtype", "float16"], 2, "'float16' is not one of 'float32', 'bfloat16'"),
    ],
)
def test_errors(petkit: Petkit, trained: Path, flags: list[str], code: int, words: str) -> None:
    result = petkit("eval", trained, "--json", *flags)
    assert (result.code, result.out) == (code, "")
    assert words in result.err


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("model.name=foo", "the artifact says what it is"),
        ("adapter.bits=2", "the artifact says what it is"),
        ("task=causal_lm", "the artifact says what it is"),
        ("training.epochs=2", "petkit eval reads data and seed alone"),
        ("output=x", "petkit eval reads data and seed alone"),
        ("data.normalize=none", "the artifact says how its pictures are prepared"),
        ("data.train_size=3", "only the test split is read"),
    ],
)
def test_a_key_without_effect_is_refused(petkit: Petkit, trained: Path, override: str, why: str) -> None:
    result = petkit("eval", trained, "--set", override)
    assert (result.code, result.out) == (2, "")
    key = override.partition("=")[0]
    assert result.err == f"error: {key} has no effect: {why} (--set); remove it\n"


def test_a_recipe_of_another_model_serves_as_data(petkit: Petkit, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    content = {
        "output": "elsewhere",
        "model": {"name": "timm/another"},
        "adapter": {"bits": 8, "head": "binary"},
        "data": {"test_size": 30, "normalize": "none"},
    }
    other.write_text(yaml.safe_dump(content))
    result = petkit("eval", trained, "--data", other, "--set", "data.test_size=7", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["n"] == 7


def test_what_is_no_artifact_is_refused(petkit: Petkit, trained: Path, tmp_path: Path) -> None:
    assert petkit("eval", tmp_path / "absent").code == 2
    copy = shutil.copytree(trained, tmp_path / "copy")
    manifest = json.loads((copy / "petkit.json").read_text())
    manifest["base"]["sha256"] = "0" * 64
    (copy / "petkit.json").write_text(json.dumps(manifest))
    other = petkit("eval", copy)
    assert other.code == 2
    assert "was trained on a base with sha256 0000" in other.err
    tensors = copy / "adapter_packed.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-3])
    assert petkit("eval", copy).code == 2


def test_an_artifact_that_records_no_data_needs_to_be_told(
    petkit: Petkit, trained: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    del config["data"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    result = petkit("eval", copy)
    assert result.code == 2
    assert "does not record its data: pass --data" in result.err
    assert petkit("eval", copy, "--data", "adapter-smoke").code == 0


@pytest.mark.parametrize("value", ["nan", "-0.5", "much"])
@pytest.mark.parametrize(
    ("verb", "flag", "wanted"),
    [
        ("eval", "--min-accuracy", "a number from 0 to 1"),
        ("eval", "--min-f1", "a number from 0 to 1"),
        ("eval", "--min-bleu", "a number from 0 to 100"),
        ("eval", "--min-reward", "a number from 0 to 1"),
        ("eval", "--max-loss", "a number of at least 0"),
        ("quantize", "--max-error", "a number of at least 0"),
    ],
)
def test_a_limit_that_is_no_number_is_said_to_be_none(
    petkit: Petkit, verb: str, flag: str, wanted: str, value: str
) -> None:
    result = petkit(verb, "nowhere", f"{flag}={value}")
    assert (result.code, result.out) == (2, "")
    assert f"invalid value for '{flag}': must be {wanted}, got {value} (see" in result.err


def test_a_file_of_examples_is_pointed_to_its_folder(petkit: Petkit, trained: Path) -> None:
    result = petkit("eval", trained, "--data", "chats/test.jsonl")
    assert result.code == 2
    assert result.err.endswith("got the file chats/test.jsonl: --data chats\n")
    result = petkit("eval", trained, "--data", "mine/some.csv")
    assert result.code == 2
    assert result.err.endswith("got the file mine/some.csv: such a folder holds train.csv and test.csv\n")


def test_the_base_may_be_a_weight_file_but_only_with_the_same_weights(petkit: Petkit, trained: Path) -> None:
    from safetensors.torch import save_file

    from petkit.models.config import ModelConfig
    from petkit.models.loading import load_model

    settings = ModelConfig(name="timm/test_vit", pretrained=False)
    state = load_model(settings, "image_classification", 10).model.state_dict()
    file = trained.parent / "base.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    there = json.loads(petkit("eval", trained, "--base", file, "--json").out)
    assert there["loss"] == json.loads(petkit("eval", trained, "--json").out)["loss"]
    save_file({name: tensor + 1 for name, tensor in state.items()}, file)
    result = petkit("eval", trained, "--base", file)
    assert result.code == 2
    assert "give the base it was trained on" in result.err
    result = petkit("eval", trained, "--base", trained.parent / "none.safetensors")
    assert result.code == 2
    assert "none.safetensors is not a file" in result.err


def test_options_without_effect_are_refused(petkit: Petkit, trained: Path) -> None:
    result = petkit("eval", trained, "--noise-seeds", "2")
    assert (result.code, result.out) == (2, "")
    assert "--noise-seeds needs --noise" in result.err
