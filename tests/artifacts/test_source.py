import pytest
import torch

from petkit.artifacts.source import read_source
from petkit.errors import ArtifactError, InputError
from petkit.models.config import AdapterConfig
from petkit.quantization.artifact import adapter_matrices, quantize_artifact
from petkit.quantization.config import QuantizationConfig
from tests.quantization.artifacts import write
from tests.quantization.peft_folder import write_peft


def test_an_artifact_is_read_where_it_is(tmp_path):
    folder, _ = write(tmp_path / "a", AdapterConfig(bits=32, bottleneck=4))
    assert read_source(folder, tmp_path / "scratch").folder == folder
    assert not (tmp_path / "scratch").exists()


def test_a_peft_folder_becomes_an_artifact_with_the_same_weights(tmp_path):
    folder, tensors = write_peft(tmp_path / "lora")
    (tmp_path / "scratch").mkdir()
    source = read_source(folder, tmp_path / "scratch")
    matrices = adapter_matrices(source)
    assert len(matrices) == 4
    for index in range(2):
        for part, name in (("down", "lora_A"), ("up", "lora_B")):
            original = tensors[f"base_model.model.blocks.{index}.mlp.fc1.{name}.weight"]
            assert torch.equal(matrices[f"blocks.{index}.mlp.fc1.lora.{part}"], original)
    quantized = quantize_artifact(source, QuantizationConfig(bits=1))
    assert quantized.manifest.adapter["scale"] == 2.0
    assert quantized.config["quantize"]["bits"] == 1
    assert [step.command for step in quantized.manifest.lineage] == ["convert", "quantize"]


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"ADAPTER must be a folder, got .*missing, which is not there"):
        read_source(tmp_path / "missing", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="which is a file"):
        read_source(tmp_path / "file", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError):
        read_source(tmp_path / "empty", tmp_path)
    with pytest.raises(InputError, match="use_dora"):
        read_source(write_peft(tmp_path / "dora", use_dora=True)[0], tmp_path)
