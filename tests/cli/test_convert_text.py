"""A sentence classifier made with PEFT, as people have it, from its folder to predictions."""

import json

import pytest

from tests.artifacts.test_peft_lora import OWN, save_adapter, save_headless

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Runs `petkit convert` once: the artifact and its base."""
    from petkit.cli.main import run

    folder = tmp_path_factory.mktemp("text")
    make, _, options = OWN["roberta"]
    save_adapter(folder / "peft", make, options)
    save_headless(make, folder / "base")
    config = folder / "base" / "config.json"
    names = {"0": "bad", "1": "fair", "2": "good"}
    labels = {"id2label": names, "label2id": {name: int(key) for key, name in names.items()}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **labels}))
    flags = ["--from", "peft", "--base", str(folder / "base"), "-o", str(folder / "artifact"), "--quiet"]
    assert run(["convert", str(folder / "peft"), *flags]) == 0
    return folder


def test_it_predicts_and_verifies(petkit, converted):
    result = petkit("predict", converted / "artifact", "w1 w2 w3", "--json")
    assert result.code == 0, result.err
    (prediction,) = json.loads(result.out)["predictions"]
    assert {one["class"] for one in prediction["classes"]} == {"bad", "fair", "good"}
    assert petkit("verify", converted / "artifact", "--base", converted / "base").code == 0


def test_it_is_evaluated_and_quantised_on_data(petkit, converted, tmp_path):
    for split in ("train", "test"):
        rows = [{"text": f"w{n} w{n + 1}", "label": ["bad", "fair", "good"][n % 3]} for n in range(12)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = petkit("eval", converted / "artifact", "--data", tmp_path, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["n"] == 12
    flags = ["--bits", "4", "--data", tmp_path, "-o", tmp_path / "q", "--calibration-batches", "1"]
    result = petkit("quantize", converted / "artifact", *flags, "--batch-size", "4", "--json")
    assert result.code == 0, result.err
    result = petkit("predict", tmp_path / "q", "w1 w2 w3", "--json")
    assert result.code == 0, result.err


def test_the_base_may_have_moved(petkit, converted, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(converted / "base")
    result = petkit("predict", converted / "artifact", "w1 w2 w3", "--base", moved, "--json")
    assert result.code == 0, result.err
    result = petkit("predict", converted / "artifact", "w1 w2 w3", "--base", tmp_path / "none")
    assert (result.code, result.out) == (2, "")
    result = petkit("quantize", converted / "artifact", "--base", moved, "-o", tmp_path / "q")
    assert result.code == 2
    assert "--base needs --data" in result.err


def test_it_cannot_be_trained_on(petkit, converted, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path / 'run'}\ntask: text_classification\n"
        f"model: {{name: {converted / 'base'}, pooling: own}}\n"
        f"data: {{format: text, path: {tmp_path}}}\n"
    )
    result = petkit("train", "adapter", recipe)
    assert (result.code, result.out) == (2, "")
    assert "model.pooling own is for adapters converted from PEFT" in result.err
