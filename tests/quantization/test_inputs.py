import pytest
import torch

from petkit.artifacts import read_artifact
from petkit.data.config import DataConfig
from petkit.errors import InputError
from petkit.models.config import AdapterConfig
from petkit.quantization.artifact import quantize_artifact, write_quantized
from petkit.quantization.config import QuantizationConfig
from petkit.quantization.inputs import draw, load_inputs
from tests.quantization.artifacts import write

SAMPLE = DataConfig(train_size=40)


@pytest.fixture
def source(tmp_path):
    return read_artifact(write(tmp_path / "a", AdapterConfig(bits=32, bottleneck=4), classes=10)[0])


def test_examples_to_compare_on_are_others_when_there_are_enough():
    fitted, compared = draw(40, 20, seed=1)
    assert (len(fitted), len(compared)) == (20, 20)
    assert set(fitted).isdisjoint(compared)
    assert draw(40, 20, seed=1) == (fitted, compared)
    assert draw(40, 20, seed=2) != (fitted, compared)


@pytest.mark.parametrize(("available", "count"), [(39, 20), (7, 7), (1, 1)])
def test_few_examples_serve_twice(available, count):
    fitted, compared = draw(available, 20, seed=0)
    assert len(fitted) == count
    assert fitted == compared


def test_batches_have_the_asked_for_sizes(source):
    inputs = load_inputs(source, SAMPLE, batches=3, batch_size=6)
    assert [len(batch["pixel_values"]) for batch in inputs.calibration] == [6, 6, 6]
    assert [len(batch["pixel_values"]) for batch in inputs.comparison] == [6, 6, 6]
    assert inputs.held_out
    assert not load_inputs(source, SAMPLE, batches=4, batch_size=6).held_out


def test_the_model_in_memory_becomes_the_one_that_is_read_back(source, tmp_path):
    inputs = load_inputs(source, SAMPLE, batches=1, batch_size=8)
    settings = QuantizationConfig(bits=2, method="least_squares")
    quantized = quantize_artifact(source, settings, inputs.second_moments())
    before = inputs.logits()
    inputs.become(quantized)
    after = inputs.logits()
    assert not torch.allclose(before, after, atol=1e-3)
    write_quantized(quantized, tmp_path / "out")
    # Packed bits are summed in another order than dequantised weights.
    torch.testing.assert_close(inputs.logits_of(tmp_path / "out"), after, rtol=1e-4, atol=1e-4)


def test_the_whole_model_is_counted_without_its_adapters(source):
    inputs = load_inputs(source, SAMPLE, batches=1, batch_size=2)
    added = sum(tensor.numel() for name, tensor in source.dense.items() if "adaptformer" in name)
    every = sum(parameter.numel() for parameter in inputs.model.parameters())
    assert inputs.full_model_bytes() == 4 * (every - added)


def test_an_adapter_without_a_task_is_refused(tmp_path):
    source = read_artifact(write(tmp_path / "b", AdapterConfig(bits=32, bottleneck=4), task=None)[0])
    with pytest.raises(InputError, match="does not say what its head predicts"):
        load_inputs(source, SAMPLE, batches=1, batch_size=1)
