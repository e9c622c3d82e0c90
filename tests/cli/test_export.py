import json
from pathlib import Path

import pytest

from tests.artifacts.support import adapter_matrices, head, manifest, write_small

FILES = sorted((Path(__file__).parents[1] / "data" / "petl_vit").glob("*.bin"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def checkpoint(request):
    return request.param


def test_published_checkpoints_come_back_byte_for_byte(petkit, tmp_path, checkpoint):
    petkit("convert", checkpoint, "--from", "petl-vit", "-o", tmp_path / "a")
    result = petkit("export", tmp_path / "a", "--format", "petl-vit", "-o", tmp_path / "x.bin", "--json")
    assert result.code == 0
    assert (tmp_path / "x.bin").read_bytes() == checkpoint.read_bytes()
    assert (tmp_path / "x.yaml").read_text() == checkpoint.with_suffix(".yaml").read_text()
    assert json.loads(result.out)["files"] == [str(tmp_path / "x.bin"), str(tmp_path / "x.yaml")]


def test_a_folder_gets_the_original_file_names(petkit, tmp_path):
    petkit("convert", FILES[0], "--from", "petl-vit", "-o", tmp_path / "a")
    arguments = ["export", tmp_path / "a", "--format", "petl-vit", "-o", tmp_path / "out"]
    assert petkit(*arguments).code == 0
    assert (tmp_path / "out" / FILES[0].name).read_bytes() == FILES[0].read_bytes()
    assert petkit(*arguments).code == 2
    assert petkit(*arguments, "--overwrite").code == 0


@pytest.mark.parametrize("file", [".bin", ".yaml"])
def test_a_full_disk_leaves_no_half_of_a_checkpoint(petkit, tmp_path, full_disk, file):
    petkit("convert", FILES[0], "--from", "petl-vit", "-o", tmp_path / "a")
    full_disk(file)
    result = petkit("export", tmp_path / "a", "--format", "petl-vit", "-o", tmp_path / "out")
    assert (result.code, result.out) == (1, "")
    assert "No space left on device" in result.err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_full_disk_leaves_no_half_of_a_peft_folder(petkit, tmp_path, full_disk, file):
    petkit("convert", FILES[-1], "--from", "petl-vit", "-o", tmp_path / "a")
    full_disk(file)
    result = petkit("export", tmp_path / "a", "--format", "peft", "-o", tmp_path / "peft")
    assert (result.code, result.out) == (1, "")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_lora_of_one_bit_goes_to_peft_dequantised_and_says_so(petkit, tmp_path):
    petkit("convert", FILES[-1], "--from", "petl-vit", "-o", tmp_path / "a")
    result = petkit("export", tmp_path / "a", "--format", "peft", "-o", tmp_path / "peft")
    assert result.code == 0
    assert "1-bit weights are written dequantised, in 4,718,592 bytes" in result.err
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (64, 640)


def test_adaptformer_cannot_go_to_peft(petkit, tmp_path):
    result = petkit("export", write_small(tmp_path / "a"), "--format", "peft", "-o", tmp_path / "peft")
    assert (result.code, result.out) == (2, "")
    assert "PEFT cannot hold this adaptformer adapter" in result.err
    assert not (tmp_path / "peft").exists()


def test_another_width_cannot_go_to_petl_vit(petkit, tmp_path):
    folder = write_small(tmp_path / "a")
    result = petkit("export", folder, "--format", "petl-vit", "-o", tmp_path / "x.bin")
    assert (result.code, result.out) == (2, "")
    assert "petl-vit needs blocks.0.adaptformer.down as (3, 768)" in result.err
    assert not (tmp_path / "x.bin").exists()


def test_peft_and_back_is_the_same_adapter(petkit, tmp_path):
    packed = adapter_matrices({"blocks.0.attn.qkv.lora": (8, 2, 24)}, 2)
    folder = write_small(tmp_path / "a", packed=packed, dense=head(8), manifest=manifest("lora", 2))
    assert petkit("export", folder, "--format", "peft", "-o", tmp_path / "peft").code == 0
    assert petkit("convert", tmp_path / "peft", "--from", "peft", "-o", tmp_path / "b").code == 0
    content = json.loads(petkit("inspect", tmp_path / "b", "--json").out)
    assert content["adapter"]["scale"] == 0.5
    assert content["float32_bytes"] == 4 * (2 * 8 + 24 * 2 + 2 * 9)


def test_a_missing_artifact_or_format(petkit, tmp_path):
    assert petkit("export", tmp_path / "none", "--format", "peft", "-o", tmp_path / "x").code == 2
    assert petkit("export", tmp_path, "--format", "onnx", "-o", tmp_path / "x").code == 2
