import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.quantization.nearest import nearest

# Converged L1-Lloyd levels of the specification, upper half.
LEVELS = {1: [0.6745], 2: [0.3778, 1.2657]}


@pytest.mark.parametrize("bits", [1, 2])
def test_every_weight_takes_the_nearest_level_of_its_moments(bits):
    weight = torch.randn(6, 11, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    values = weight.numpy()
    mean, deviation = values.mean(), values.std(ddof=1)
    book = np.array([-level for level in reversed(LEVELS[bits])] + LEVELS[bits])
    codes = np.abs((values - mean)[..., None] / (deviation + 1e-5) - book).argmin(-1)
    got = nearest(weight, bits)
    np.testing.assert_array_equal(got.codes(), codes)
    assert got.shift == pytest.approx(mean, abs=1e-6)
    assert got.scale == pytest.approx(deviation, rel=1e-6)


def test_a_constant_matrix_comes_back_as_it_was():
    np.testing.assert_allclose(nearest(torch.full((3, 5), 0.25), 4).dequantize(), 0.25, atol=1e-7)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), r"matrix \(out, in\), got torch.float32 of shape \(3,\)"),
        (torch.ones(2, 2, dtype=torch.int64), "got torch.int64"),
        (torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]]), "got 2 NaN or infinite values of 4"),
    ],
)
def test_refusals(weight, message):
    with pytest.raises(InputError, match=message):
        nearest(weight, 1)
