from dataclasses import replace

import numpy as np
import pytest
import torch

from petkit.artifacts import read_artifact
from petkit.artifacts.reader import TENSORS
from petkit.errors import ConfigError, InputError
from petkit.models.config import AdapterConfig
from petkit.quantization.artifact import (
    adapter_matrices,
    artifact_ledger,
    gate_checks,
    quantize_artifact,
    reload_check,
    write_quantized,
)
from petkit.quantization.config import QuantizationConfig
from petkit.quantization.nearest import nearest
from tests.quantization.artifacts import write

PLAIN = AdapterConfig(bits=32, bottleneck=4, dropout=0.0)


@pytest.fixture
def source(tmp_path):
    return read_artifact(write(tmp_path / "source", PLAIN)[0])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("codebook", ["normal_l1", "petl_vit"])
def test_every_matrix_is_quantised_and_the_head_stays(source, bits, codebook):
    settings = QuantizationConfig(bits=bits, codebook=codebook)
    quantized = quantize_artifact(source, settings)
    matrices = adapter_matrices(source)
    assert list(quantized.packed) == list(matrices)
    for name, weight in matrices.items():
        expected = nearest(weight, bits, codebook)
        np.testing.assert_array_equal(quantized.packed[name].dequantize(), expected.dequantize())
    assert set(quantized.dense) == {"head.weight", "head.bias"}
    assert torch.equal(quantized.dense["head.weight"], source.dense["head.weight"])
    assert [error.name for error in quantized.errors] == list(matrices)


def test_more_bits_lose_less(source):
    losses = [
        max(error.relative_error for error in quantize_artifact(source, QuantizationConfig(bits=bits)).errors)
        for bits in (1, 2, 4, 8)
    ]
    assert losses == sorted(losses, reverse=True)


def test_the_artifact_reads_back_with_one_more_step_of_history(source, tmp_path):
    settings = QuantizationConfig(bits=2, method="least_squares")
    quantized = quantize_artifact(source, settings)
    reread, checks = write_quantized(quantized, tmp_path / "out", extra_files={"README.md": "card"})
    assert [check.ok for check in checks] == [True]
    assert checks[0].detail == "14 tensors equal bit for bit after reading back"
    assert reread.manifest.adapter["bits"] == 2
    assert reread.manifest.base == source.manifest.base
    assert len(reread.manifest.lineage) == len(source.manifest.lineage) + 1
    last = reread.manifest.lineage[-1]
    assert (last.command, last.inputs) == ("quantize", {"adapter": source.manifest.tensors_sha256})
    assert reread.config["adapter"]["bits"] == 2
    assert reread.config["model"] == source.config["model"]
    assert (tmp_path / "out" / "README.md").read_text() == "card"


def test_a_changed_bit_is_noticed_after_reading_back(source, tmp_path):
    quantized = quantize_artifact(source, QuantizationConfig(bits=1))
    reread, _ = write_quantized(quantized, tmp_path / "out")
    name, matrix = next(iter(reread.packed.items()))
    flipped = replace(matrix, stream=matrix.stream ^ np.uint8(1))
    check = reload_check(quantized, replace(reread, packed={**reread.packed, name: flipped}))
    assert not check.ok
    assert check.detail == f"1 of 14 tensors differ after reading back, first {name}"


def test_a_binary_head_stays_packed(tmp_path):
    source = read_artifact(write(tmp_path / "a", PLAIN.model_copy(update={"head": "binary"}))[0])
    quantized = quantize_artifact(source, QuantizationConfig(bits=4))
    assert quantized.packed["head"].bits == 1
    reread, _ = write_quantized(quantized, tmp_path / "out")
    assert reread.packed["head"].bits == 1


def test_the_ledger_adds_up_to_the_file(source, tmp_path):
    reread, _ = write_quantized(quantize_artifact(source, QuantizationConfig(bits=1)), tmp_path / "out")
    ledger = artifact_ledger(reread, 1_000_000)
    assert ledger.nbytes == (tmp_path / "out" / TENSORS).stat().st_size
    assert ledger.nbytes - ledger.header == reread.nbytes
    assert ledger.summary()["ratio_to_full_model"] == 1_000_000 / ledger.nbytes


def test_the_gate_looks_at_the_worst_matrix(source):
    errors = quantize_artifact(source, QuantizationConfig(bits=1)).errors
    worst = max(error.relative_error for error in errors)
    assert gate_checks(errors, None) == []
    assert gate_checks(errors, worst)[0].ok
    (failed,) = gate_checks(errors, worst - 0.01)
    assert not failed.ok
    assert failed.exit_code == 3
    assert f"largest relative error {worst:.4f}" in failed.detail


def test_the_gate_takes_the_error_of_the_outputs_where_there_is_one(source):
    moments = {name: torch.eye(weight.shape[1]) for name, weight in adapter_matrices(source).items()}
    errors = quantize_artifact(source, QuantizationConfig(bits=1), moments).errors
    assert errors[0].output_error == pytest.approx(errors[0].relative_error)
    assert gate_checks([replace(error, output_error=0.0) for error in errors], 0.1)[0].ok


def test_quantised_adapters_are_refused(tmp_path):
    done = read_artifact(write(tmp_path / "a", AdapterConfig(bits=2, bottleneck=4))[0])
    with pytest.raises(InputError, match=r"must hold 32-bit adapters, its adapters are 2-bit already"):
        quantize_artifact(done, QuantizationConfig(bits=1))


def test_an_artifact_without_adapters_is_refused(tmp_path):
    probe = read_artifact(write(tmp_path / "a", AdapterConfig(method="linear_probe", bits=32))[0])
    with pytest.raises(InputError, match="it has none: there is nothing to quantise"):
        quantize_artifact(probe, QuantizationConfig(bits=1))


def test_settings_without_effect_are_refused():
    from petkit.configuration import resolve

    with pytest.raises(ConfigError, match="rounds"):
        resolve(QuantizationConfig, (), (), {"bits": 1, "rounds": 2}, {})
