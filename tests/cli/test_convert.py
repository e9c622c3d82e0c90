import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from petkit.artifacts import read_artifact, verify

DATA = Path(__file__).parents[1] / "data" / "petl_vit"
FILES = sorted(DATA.glob("*.bin"))
LAYER = "base_model.model.blocks.0.attn.qkv"


def peft_folder(folder, width=8, rows=8, **config):
    folder.mkdir()
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/vit", **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    generator = np.random.default_rng(0)
    down, up = (generator.normal(size=size).astype(np.float32) for size in ((2, width), (rows, 2)))
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_checkpoints(petkit, tmp_path, path):
    result = petkit("convert", path, "--from", "petl-vit", "-o", tmp_path / "a", "--json")
    assert result.code == 0
    assert json.loads(result.out)["ok"] is True
    assert "the hash of the base timm/vit_base_patch16_224.orig_in21k is unknown" in result.err
    artifact = read_artifact(tmp_path / "a")
    assert artifact.manifest.lineage[0].inputs.keys() == {path.name, path.with_suffix(".yaml").name}
    assert all(check.ok for check in verify(tmp_path / "a"))
    names = {*artifact.packed, *artifact.raw_dense}
    assert all(f"blocks.{block}." in " ".join(names) for block in range(12))
    assert ("head" in names) == ("bihead" in path.name)
    assert ({"head.weight", "head.bias"} <= names) == ("bihead" not in path.name)


def test_the_yaml_may_be_elsewhere(petkit, tmp_path):
    shutil.copy(FILES[0], tmp_path / "x.bin")
    arguments = ["convert", tmp_path / "x.bin", "--from", "petl-vit", "-o", tmp_path / "a"]
    result = petkit(*arguments)
    assert result.code == 2
    assert "needs the YAML file" in result.err
    assert petkit(*arguments, "--config", FILES[0].with_suffix(".yaml")).code == 0


def test_a_peft_folder_or_a_file_in_it(petkit, tmp_path):
    folder = peft_folder(tmp_path / "peft")
    assert petkit("convert", folder, "--from", "peft", "-o", tmp_path / "a").code == 0
    file = folder / "adapter_model.safetensors"
    assert petkit("convert", file, "--from", "peft", "-o", tmp_path / "b").code == 0
    artifact = read_artifact(tmp_path / "b")
    assert artifact.manifest.base.id == "hf/org/vit"
    assert set(artifact.raw_dense) == {f"blocks.0.attn.qkv.lora.{part}.weight" for part in ("down", "up")}


def test_what_cannot_be_kept_is_refused_by_name_and_leaves_nothing(petkit, tmp_path):
    result = petkit(
        "convert", peft_folder(tmp_path / "peft", use_dora=True), "--from", "peft", "-o", tmp_path / "a"
    )
    assert (result.code, result.out) == (2, "")
    assert "DoRA (use_dora)" in result.err
    assert not (tmp_path / "a").exists()


def test_the_base_is_recorded_by_its_hash(petkit, tmp_path):
    folder = peft_folder(tmp_path / "peft")
    petkit("convert", folder, "--from", "peft", "-o", tmp_path / "a", "--base", "AB" * 32)
    assert read_artifact(tmp_path / "a").manifest.base.sha256 == "ab" * 32
    assert read_artifact(tmp_path / "a").manifest.base.id == "hf/org/vit"


def test_pickles_give_5(petkit, tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": 1}))
    result = petkit("convert", tmp_path / "x.bin", "--from", "petl-vit", "-o", tmp_path / "a")
    assert result.code == 5
    folder = peft_folder(tmp_path / "peft")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    result = petkit("convert", folder, "--from", "peft", "-o", tmp_path / "a")
    assert result.code == 5
    assert "--allow-pickle" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "petl-vit", "--allow-pickle"], "--allow-pickle has no effect with --from petl-vit"),
        (["--from", "peft", "--config", "x.yaml"], "--config has no effect with --from peft"),
        (["--from", "gguf"], "is not one of 'peft', 'petl-vit'"),
        (["--from", "peft"], "is no PEFT adapter"),
        ([], "missing option '--from'"),
    ],
)
def test_wrong_usage_gives_2(petkit, tmp_path, arguments, message):
    result = petkit("convert", FILES[0], *arguments, "-o", tmp_path / "a")
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_output_folders_are_respected(petkit, tmp_path):
    arguments = ["convert", FILES[0], "--from", "petl-vit", "-o", tmp_path / "a"]
    assert petkit(*arguments).code == 0
    assert petkit(*arguments).code == 2
    assert petkit(*arguments, "--overwrite").code == 0


def test_a_task_must_be_told_where_the_folder_does_not_say_it(petkit, tmp_path):
    folder = peft_folder(tmp_path / "peft")
    result = petkit("convert", folder, "--from", "peft", "-o", tmp_path / "a")
    assert "does not say what the model is for: --task" in result.err
    result = petkit("convert", folder, "--from", "peft", "-o", tmp_path / "b", "--base", "timm/test_vit")
    assert (result.code, result.out) == (2, "")
    assert "--base MODEL needs --task" in result.err
    arguments = ["convert", folder, "--from", "peft", "-o", tmp_path / "c", "--task", "image_classification"]
    assert petkit(*arguments).code == 0
    assert read_artifact(tmp_path / "c").manifest.task.type == "image_classification"


def test_a_repeated_key_and_a_regression_are_refused(petkit, tmp_path):
    folder = peft_folder(tmp_path / "peft")
    path = folder / "adapter_config.json"
    whole = path.read_text()
    path.write_text(whole.replace("{", '{"r": 99, ', 1))
    result = petkit("convert", folder, "--from", "peft", "-o", tmp_path / "a")
    assert (result.code, result.out) == (2, "")
    assert "adapter_config.json is not valid JSON" in result.err
    path.write_text(json.dumps({**json.loads(whole), "modules_to_save": ["head"]}))
    file = folder / "adapter_model.safetensors"
    one = {"base_model.model.head.weight": np.ones((1, 8), np.float32)}
    safetensors.numpy.save_file(safetensors.numpy.load_file(file) | one, file)
    result = petkit("convert", folder, "--from", "peft", "-o", tmp_path / "a")
    assert (result.code, result.out) == (2, "")
    assert "has one output, a regression" in result.err


def test_a_base_that_the_folder_does_not_name(petkit, tmp_path):
    from petkit.models.config import ModelConfig
    from petkit.models.loading import load_model

    folder = peft_folder(tmp_path / "peft", 64, 192, base_model_name_or_path=None)
    result = petkit("convert", folder, "--from", "peft", "-o", tmp_path / "a")
    assert result.code == 0
    assert "does not name its model: --base MODEL records it" in result.err
    model = load_model(ModelConfig(name="timm/test_vit", pretrained=False), "image_classification").model
    file = tmp_path / "base.safetensors"
    state = {name: x.numpy() for name, x in model.state_dict().items() if not name.startswith("head.")}
    safetensors.numpy.save_file(state, file)
    flags = ["--from", "peft", "--task", "image_classification", "-o", tmp_path / "b"]
    result = petkit("convert", folder, *flags, "--base", file)
    assert result.code == 2
    assert "give --base MODEL and --weights" in result.err
    result = petkit("convert", folder, *flags, "--weights", file)
    assert result.code == 2
    assert "--weights needs --base MODEL" in result.err
    result = petkit("convert", folder, *flags, "--base", "timm/test_vit", "--weights", file)
    assert result.code == 0, result.err
    manifest = read_artifact(tmp_path / "b").manifest
    assert (manifest.base.id, manifest.model["weights"]) == ("timm/test_vit", str(file))
    assert len(manifest.base.sha256) == 64
    other = peft_folder(tmp_path / "other", base_model_name_or_path=None)
    flags[-1] = tmp_path / "c"
    result = petkit("convert", other, *flags, "--base", "timm/test_vit", "--weights", file)
    assert (result.code, (tmp_path / "c").exists()) == (2, False)
    assert "--base timm/test_vit is not the model that the adapter was made for: blocks.0" in result.err


def test_a_task_that_petkit_does_not_read_is_refused(petkit, tmp_path):
    folder = peft_folder(tmp_path / "peft", task_type="TOKEN_CLS")
    result = petkit("convert", folder, "--from", "peft", "-o", tmp_path / "a")
    assert (result.code, (tmp_path / "a").exists()) == (2, False)
    assert "is for task_type TOKEN_CLS: petkit reads CAUSAL_LM, SEQ_CLS" in result.err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
def test_a_sentence_classifier_with_names_for_its_classes(petkit, tmp_path):
    from tests.artifacts.peft_models import OWN, bert, save_adapter, save_headless

    save_adapter(tmp_path / "peft", bert, OWN["bert"][2])
    save_headless(bert, tmp_path / "base")
    command = ["convert", tmp_path / "peft", "--from", "peft", "--base", tmp_path / "base", "--classes"]
    for wrong in ("pos,neg", "a,a,b", "a,,b"):
        result = petkit(*command, wrong, "-o", tmp_path / "a")
        assert result.code == 2
        assert "--classes must be 3 different names with commas between" in result.err
        assert "hashing" not in result.err
    assert petkit(*command, "pos, neg,neutral", "-o", tmp_path / "a").code == 0
    assert read_artifact(tmp_path / "a").manifest.task.classes == ("pos", "neg", "neutral")
    again = petkit(*command, "pos,neg,neutral", "-o", tmp_path / "a")
    assert again.code == 2
    assert "hashing" not in again.err
    # Longer texts than the model has positions (16) are cut, by every command.
    told = petkit("predict", tmp_path / "a", "w1 " * 40)
    assert told.code == 0, told.err
    assert "1 of 1 texts are longer than 16 tokens" in told.err
    assert petkit("quantize", tmp_path / "a", "-o", tmp_path / "bank" / "a").code == 0
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "w2 " * n, "adapter": "a"}) + "\n" for n in (3, 40)))
    told = petkit("predict", "--bank", tmp_path / "bank", rows, "--json")
    assert told.code == 0, told.err
    assert len(json.loads(told.out)["predictions"]) == 2
    (tmp_path / "base").rename(tmp_path / "moved")
    for command in (("predict", tmp_path / "a", "w1"), ("predict", "--bank", tmp_path / "bank", rows)):
        lost = petkit(*command)
        assert lost.code == 2
        assert "give its place with --base" in lost.err
        assert petkit(*command, "--base", tmp_path / "moved").code == 0


@pytest.mark.slow
def test_a_published_checkpoint_with_a_weight_file(petkit, tmp_path):
    import timm
    import torch
    from PIL import Image

    torch.manual_seed(0)
    file = tmp_path / "vit.safetensors"
    state = timm.create_model("vit_base_patch16_224", num_classes=0).state_dict()
    safetensors.numpy.save_file({name: tensor.numpy() for name, tensor in state.items()}, file)
    result = petkit("convert", FILES[0], "--from", "petl-vit", "-o", tmp_path / "a", "--base", file)
    assert result.code == 0, result.err
    manifest = read_artifact(tmp_path / "a").manifest
    assert manifest.base.id == "timm/vit_base_patch16_224.orig_in21k"
    assert manifest.model["weights"] == str(file)
    assert petkit("verify", tmp_path / "a", "--base", file).code == 0
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    result = petkit("predict", tmp_path / "a", tmp_path / "x.png", "--json")
    assert result.code == 0, result.err
