import numpy as np
import pytest
import torch

from petkit.ops import lowbit_codebook
from tests.cuda_emulator.support import BITS, CODEBOOKS, DTYPES, from_bits, in_all_orders, normal, to_bits
from tests.reference import lowbit

SHAPES = [(1, 2), (2, 1), (1, 63), (3, 65), (9, 64), (7, 1001)]


def fake_quantize(cuda, weight, bits, kind="normal_l1"):
    levels, dtype = lowbit_codebook(bits, kind).numpy(), str(weight.dtype)[6:]
    return in_all_orders(lambda order: cuda.fake_quantize(to_bits(weight), levels, dtype, bits, order))


def gradient(cuda, weight, upstream, bits, kind="normal_l1"):
    levels, dtype = lowbit_codebook(bits, kind).numpy(), str(weight.dtype)[6:]
    _, shift, scale = fake_quantize(cuda, weight, bits, kind)
    return in_all_orders(
        lambda order: cuda.fake_quantize_backward(
            to_bits(upstream), to_bits(weight), shift, scale, levels, dtype, bits, order
        )
    )


def surrogate_gradient(weight, upstream, bits, kind):
    """Torch's own derivative, in float64, of mean + std * (n + (q - n held constant))."""
    levels, live = lowbit_codebook(bits, kind).double(), weight.double().requires_grad_()
    mean, std = live.mean(), live.std()
    normalised = (live - mean) / (std + lowbit.EPSILON)
    codes, _, _ = lowbit.quantize(weight.double().numpy(), levels.numpy())
    held = levels[torch.from_numpy(codes)] - normalised.detach()
    return torch.autograd.grad(mean + std * (normalised + held), live, upstream.double())[0].numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "kind"), CODEBOOKS)
def test_forward_is_quantize_then_dequantize(cuda, bits, kind, shape, dtype):
    weight = (normal(*shape).float() * 0.04 + 0.01).to(getattr(torch, dtype))
    levels = lowbit_codebook(bits, kind).numpy()
    quantized, shift, scale = fake_quantize(cuda, weight, bits, kind)
    packed, other_shift, other_scale = cuda.quantize(to_bits(weight), levels, dtype, bits, 0)
    assert (shift, scale) == (other_shift, other_scale)
    expected = cuda.dequantize(packed, shift, scale, levels, dtype, bits, shape[1], 0)
    np.testing.assert_array_equal(quantized, expected)
    codes = lowbit.codes_given(weight.double().numpy(), shift, scale, levels.astype(np.float64))
    exact = lowbit.dequantize(codes, shift, scale, levels.astype(np.float64))
    tolerance = {"float32": 2e-7, "bfloat16": 2.0**-8, "float16": 2.0**-10}[dtype]
    np.testing.assert_allclose(from_bits(quantized, dtype), exact, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "kind"), CODEBOOKS)
def test_exact_gradient_is_the_surrogates(cuda, bits, kind, shape):
    weight, upstream = normal(*shape) * 0.04, normal(*shape, seed=1)
    expected = surrogate_gradient(weight, upstream, bits, kind)
    # float32 weights and gradients: a few units in the last place of the largest term.
    bound = 2e-6 * (np.abs(expected).max() + upstream.abs().max().item())
    np.testing.assert_allclose(gradient(cuda, weight, upstream, bits, kind), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("bits", BITS)
def test_exact_gradient_against_finite_differences(cuda, bits):
    weight, upstream = normal(4, 9), normal(4, 9, seed=1)
    levels = lowbit_codebook(bits).double().numpy()
    expected = lowbit.fake_quantize_gradient(weight.double().numpy(), upstream.double().numpy(), levels)
    np.testing.assert_allclose(gradient(cuda, weight, upstream, bits), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gradient(cuda, dtype):
    weight, upstream = normal(16, 48, dtype=dtype), normal(16, 48, seed=1, dtype=dtype)
    expected = surrogate_gradient(weight, upstream, 2, "normal_l1")
    got = from_bits(gradient(cuda, weight, upstream, 2), dtype)
    np.testing.assert_allclose(got, expected, rtol=torch.finfo(getattr(torch, dtype)).eps, atol=1e-4)


def test_gradient_over_several_blocks(cuda):
    weight, upstream = normal(41, 1003), normal(41, 1003, seed=1)
    expected = surrogate_gradient(weight, upstream, 4, "normal_l1")
    np.testing.assert_allclose(gradient(cuda, weight, upstream, 4), expected, rtol=0, atol=1e-5)


def test_a_constant_matrix(cuda):
    weight, upstream = torch.full((3, 5), 0.7), normal(3, 5)
    np.testing.assert_array_equal(fake_quantize(cuda, weight, 4)[0], weight.numpy())
    # Only the mean is live: its derivative spreads the gradient evenly.
    expected = np.full((3, 5), upstream.mean().item())
    np.testing.assert_allclose(gradient(cuda, weight, upstream, 4), expected, rtol=1e-5, atol=1e-6)


def test_nan_spreads_instead_of_hiding(cuda):
    weight = normal(3, 40)
    weight[1, 2] = torch.nan
    levels = lowbit_codebook(1).numpy()
    assert np.isnan(cuda.fake_quantize(weight.numpy(), levels, "float32", 1, 0)[0]).all()
