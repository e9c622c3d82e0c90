import numpy as np
import pytest
import torch

from petkit.ops import lowbit_codebook
from tests.cuda_emulator.support import BITS, CODEBOOKS, DTYPES, in_all_orders, normal, pack, to_bits
from tests.reference import lowbit

SHAPES = [(1, 2), (2, 1), (1, 63), (3, 65), (9, 64), (33, 96), (7, 1001)]


def quantize(cuda, weight, bits, kind="normal_l1"):
    levels, dtype = lowbit_codebook(bits, kind).numpy(), str(weight.dtype)[6:]
    return in_all_orders(lambda order: cuda.quantize(to_bits(weight), levels, dtype, bits, order))


def check(cuda, weight, bits, kind="normal_l1"):
    packed, shift, scale = quantize(cuda, weight, bits, kind)
    exact, levels = weight.double().numpy(), lowbit_codebook(bits, kind).double().numpy()
    nearest, mean, std = lowbit.quantize(exact, levels)
    # Sums in double, rounded to float once: half a unit, and one for a tie that falls the other way.
    np.testing.assert_allclose([shift, scale], [mean, std], rtol=1.2e-7, atol=1e-7 * std)
    codes = lowbit.codes_given(exact, float(shift), float(scale), levels)
    np.testing.assert_array_equal(packed, pack(codes, bits))
    # Rounding the mean and deviation to float can move only a weight that lies on a boundary.
    assert (codes != nearest).mean() <= 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "kind"), CODEBOOKS)
def test_matches_the_reference(cuda, bits, kind, shape, dtype):
    check(cuda, (normal(*shape).float() * 0.04 + 0.01).to(getattr(torch, dtype)), bits, kind)


@pytest.mark.parametrize("bits", BITS)
def test_statistics_of_several_blocks_with_a_far_mean(cuda, bits):
    check(cuda, normal(41, 1003) + 1000, bits)


def test_an_outlier_first(cuda):
    weight = normal(40, 300)
    weight[0, 0] = 1e6
    check(cuda, weight, 4)


def test_a_constant_matrix_gets_the_lower_middle_code_and_scale_zero(cuda):
    packed, shift, scale = quantize(cuda, torch.full((3, 9), 0.7), 2)
    assert (shift, scale) == (np.float32(0.7), 0)
    np.testing.assert_array_equal(packed, pack(np.full((3, 9), 1), 2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_the_scale(cuda, value):
    weight = normal(3, 40)
    weight[1, 2] = value
    assert np.isnan(quantize(cuda, weight, 1)[2])
