"""`petkit merge`: its help, its plan, its result and its faults."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from petkit.cli.merged_logits import checked_logits


@pytest.fixture
def config(tmp_path):
    base = {"layers.0.w": torch.arange(6.0), "norm": torch.ones(3)}
    for name, shift in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        save_file({key: one + shift for key, one in base.items()}, tmp_path / name / "model.safetensors")
    path = tmp_path / "merge.yml"
    path.write_text(
        f"merge_method: linear\nbase_model: {tmp_path}/base\nmodels:\n"
        f"  - {{model: {tmp_path}/a, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {tmp_path}/b, parameters: {{weight: 1}}}}\n"
    )
    return path


def test_help(petkit):
    shown = petkit("merge", "--help").out
    assert "mergekit" in shown
    assert "--shard-size" in shown


def test_no_configuration(petkit):
    done = petkit("merge")
    assert (done.code, done.out) == (2, "")
    assert "missing argument 'CONFIG'" in done.err


def test_a_merge(petkit, config, tmp_path):
    done = petkit("merge", config, "-o", tmp_path / "out", "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert (result["status"], result["tensors"], result["changed"]) == ("completed", 2, 2)
    assert json.loads((tmp_path / "out/checks.json").read_text())["ok"] is True


def test_the_history_has_the_hashes_of_the_inputs(petkit, config, tmp_path):
    assert petkit("merge", config, "-o", tmp_path / "out").code == 0
    history = json.loads((tmp_path / "out/petkit.json").read_text())["lineage"]
    wanted = hashlib.sha256((tmp_path / "a/model.safetensors").read_bytes()).hexdigest()
    assert history[0]["inputs"][f"{tmp_path}/a/model.safetensors"] == wanted
    assert len(history[0]["inputs"]) == 3


@pytest.mark.slow
def test_logits_are_those_of_the_merge_in_memory(petkit, llama, tmp_path):
    state = load_file(llama / "model.safetensors")
    for name, shift in (("a", 0.1), ("b", 0.3)):
        shutil.copytree(llama, tmp_path / name)
        moved = {key: one + shift * torch.sin(one * 50) for key, one in state.items()}
        save_file(moved, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    config = tmp_path / "m.yml"
    own = "parameters: {weight: 1, density: 0.5}"
    models = ", ".join(f"{{model: {tmp_path}/{name}, {own}}}" for name in "ab")
    config.write_text(f"merge_method: dare_ties\nbase_model: {llama}\nmodels: [{models}]\n")
    done = petkit("merge", config, "-o", tmp_path / "out", "--check-logits", "--seed", 3, "--json")
    assert (done.code, json.loads(done.out)["checks"]["logits"]) == (0, True)
    # Of another seed, other differences are dropped.
    other = checked_logits(tmp_path / "out", config, 4, str(llama))
    assert not other.ok


def test_a_plan_writes_nothing(petkit, config, tmp_path):
    done = petkit("merge", config, "-o", tmp_path / "out", "--dry-run", "--json")
    plan = json.loads(done.out)
    assert (done.code, plan["tensors"], plan["parameters"], plan["bytes"]) == (0, 2, 9, 36)
    assert plan["estimate"]["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty(petkit, config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").touch()
    done = petkit("merge", config, "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("linear", "liner"), "did you mean linear?"),
        (("weight: 1", "wieght: 1"), "did you mean weight?"),
        (("/a,", "/gone,"), "gone is missing"),
        (("base_model", "base_modl"), "did you mean base_model?"),
    ],
)
def test_faults_exit_with_2(petkit, config, tmp_path, change, message):
    config.write_text(config.read_text().replace(*change, 1))
    for flags in ((), ("--dry-run",)):
        done = petkit("merge", config, "-o", tmp_path / "out", *flags)
        assert (done.code, done.out) == (2, "")
        assert message in done.err


def test_a_merge_that_changes_nothing_exits_with_3(petkit, config, tmp_path):
    text = config.read_text().replace("linear", "task_arithmetic").replace("weight: 1", "weight: 0")
    config.write_text(text)
    done = petkit("merge", config, "-o", tmp_path / "out")
    assert done.code == 3
    assert "0 of 2 merged tensors differ from its base" in done.err


def test_what_was_merged_can_be_looked_at(petkit, config, tmp_path):
    folder = tmp_path / "out"
    petkit("merge", config, "-o", folder)
    shown = petkit("inspect", folder)
    assert (shown.code, "method   linear, seed 0" in shown.out) == (0, True)
    assert json.loads(petkit("inspect", folder, "--json").out)["parameters"] == 9
    assert petkit("verify", folder).code == 0
    refused = petkit("verify", folder, "--base", "0" * 64)
    assert (refused.code, "it has no base" in refused.out) == (3, True)
    done = petkit("quantize", folder, "--bits", "1", "-o", tmp_path / "q")
    assert (done.code, "describes a merged model, but an adapter is needed here" in done.err) == (2, True)
    done = petkit("eval", folder)
    assert (done.code, "is a merged model, which records no data: pass --data" in done.err) == (2, True)


def test_an_altered_shard_is_found(petkit, config, tmp_path):
    folder = tmp_path / "out"
    petkit("merge", config, "-o", folder)
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    done = petkit("verify", folder)
    assert (done.code, "one was altered or exchanged" in done.out) == (2, True)
    file.unlink()
    assert "has no model.safetensors" in petkit("verify", folder).out


@pytest.mark.parametrize("place", ["a", ".", "a/out"])
def test_an_output_that_holds_or_lies_in_an_input(petkit, config, tmp_path, place):
    for flags in ((), ("--overwrite",)):
        done = petkit("merge", config, "-o", tmp_path / place, *flags)
        assert (done.code, done.out) == (2, "")
        assert "must lie apart from what is read" in done.err
    assert (tmp_path / "a/model.safetensors").exists()


@pytest.mark.parametrize("file", ["config.json", "config.yaml", "model.safetensors"])
@pytest.mark.parametrize("how", ["altered", "gone"])
def test_verify_sees_every_file(petkit, config, tmp_path, file, how):
    for name in ("base", "a", "b"):
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    assert petkit("merge", config, "-o", tmp_path / "out").code == 0
    assert petkit("verify", tmp_path / "out").code == 0
    path = tmp_path / "out" / file
    if how == "gone":
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes(raw)
    done = petkit("verify", tmp_path / "out")
    assert done.code == 2
    assert file in done.out + done.err or "shards" in done.out
