import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import lowbit_codebook, lowbit_dequantize, lowbit_fake_quantize, lowbit_quantize
from tests.reference import lowbit
from tests.threads import threads

BITS = (1, 2, 4, 8)
SHAPES = [(1, 2), (2, 1), (1, 63), (5, 7), (3, 65), (8, 384), (1, 65537)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(weight, upstream, bits, kind="normal_l1", gradient="exact"):
    weight = weight.detach().requires_grad_()
    lowbit_fake_quantize(weight, bits, kind, gradient).backward(upstream)
    return weight.grad


def surrogate_gradient(weight, upstream, bits):
    """Torch's own derivative, in float64, of mean + std * (n + (q - n held constant))."""
    levels = lowbit_codebook(bits).double()
    live = weight.detach().double().requires_grad_()
    mean, std = live.mean(), live.std()
    normalised = (live - mean) / (std + lowbit.EPSILON)
    codes, _, _ = lowbit.quantize(weight.detach().double().numpy(), levels.numpy())
    held = levels[torch.from_numpy(codes)] - normalised.detach()
    (result,) = torch.autograd.grad(mean + std * (normalised + held), live, upstream.double())
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_equals_quantise_then_dequantise_bit_for_bit(kernels, bits, shape, dtype):
    weight = (normal(*shape) * 0.3 + 0.05).to(dtype)
    expected = lowbit_dequantize(*lowbit_quantize(weight, bits), bits, shape[1], dtype=dtype)
    assert torch.equal(lowbit_fake_quantize(weight, bits), expected)


@pytest.mark.parametrize("bits", BITS)
def test_matches_the_reference(kernels, bits):
    weight, levels = normal(24, 65), lowbit_codebook(bits).double().numpy()
    codes, mean, std = lowbit.quantize(weight.double().numpy(), levels)
    expected = lowbit.dequantize(codes, mean, std, levels)
    np.testing.assert_allclose(lowbit_fake_quantize(weight, bits).numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_exact_gradient_is_the_surrogates(kernels, bits, shape):
    weight, upstream = normal(*shape) * 0.04, normal(*shape, seed=1)
    expected = surrogate_gradient(weight, upstream, bits)
    # float32 weights, gradients and codes: a few units in the last place of the largest term.
    bound = 2e-6 * (expected.abs().max().item() + upstream.abs().max().item())
    torch.testing.assert_close(gradient_of(weight, upstream, bits).double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("bits", BITS)
def test_exact_gradient_against_finite_differences(kernels, bits):
    weight, upstream = normal(4, 9), normal(4, 9, seed=1)
    levels = lowbit_codebook(bits).double().numpy()
    expected = lowbit.fake_quantize_gradient(weight.double().numpy(), upstream.double().numpy(), levels)
    np.testing.assert_allclose(gradient_of(weight, upstream, bits).numpy(), expected, rtol=2e-5, atol=2e-6)


def test_the_surrogate_passes_gradcheck():
    weight, levels = normal(3, 5).double(), lowbit_codebook(2).double()
    codes, mean, std = lowbit.quantize(weight.numpy(), levels.numpy())
    held = levels[torch.from_numpy(codes)] - (weight - mean) / (std + lowbit.EPSILON)

    def surrogate(live):
        spread = live.std()
        return live.mean() + spread * ((live - live.mean()) / (spread + lowbit.EPSILON) + held)

    assert torch.autograd.gradcheck(surrogate, weight.requires_grad_())


@pytest.mark.parametrize("bits", BITS)
def test_published_form_of_the_gradient(kernels, bits):
    weight, upstream = normal(16, 32), normal(16, 32, seed=1)
    normalised = (weight - weight.mean()) / weight.std()
    rounded = (lowbit_fake_quantize(weight, bits) - weight.mean()) / weight.std()
    inner = (upstream * (rounded - normalised)).sum()
    expected = upstream + inner * normalised / (weight.numel() - 1)
    # The published form leaves out terms of order eps = 1e-5.
    torch.testing.assert_close(gradient_of(weight, upstream, bits), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_identity_gradient(kernels, bits):
    weight, upstream = normal(5, 6), normal(5, 6, seed=1)
    assert torch.equal(gradient_of(weight, upstream, bits, gradient="identity"), upstream)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradient(kernels, dtype):
    weight, upstream = normal(16, 48).to(dtype), normal(16, 48, seed=1).to(dtype)
    expected = surrogate_gradient(weight, upstream, 2)
    got = gradient_of(weight, upstream, 2)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_weights_that_do_not_lie_in_order(kernels):
    weight, upstream = normal(40, 30), normal(30, 40, seed=1)
    assert torch.equal(lowbit_fake_quantize(weight.T, 2), lowbit_fake_quantize(weight.T.contiguous(), 2))
    got = gradient_of(weight.T, upstream, 2)
    assert torch.equal(got, gradient_of(weight.T.contiguous(), upstream, 2))
    strided = upstream.T.contiguous().T
    assert torch.equal(got, gradient_of(weight.T.contiguous(), strided, 2))


def test_a_constant_matrix(kernels):
    weight, upstream = torch.full((3, 5), 0.7), normal(3, 5)
    assert torch.equal(lowbit_fake_quantize(weight, 4), weight)
    # Only the mean is live: its derivative spreads the gradient evenly.
    expected = upstream.mean().expand(3, 5)
    torch.testing.assert_close(gradient_of(weight, upstream, 4), expected, rtol=1e-5, atol=1e-6)


def test_nan_spreads_instead_of_hiding(kernels):
    weight = normal(3, 40)
    weight[1, 2] = float("nan")
    assert lowbit_fake_quantize(weight, 1).isnan().all()


@given(
    bits=st.sampled_from(BITS), rows=st.integers(1, 6), columns=st.integers(2, 40), seed=st.integers(0, 10**6)
)
def test_the_gradient_of_the_sum_is_one(bits, rows, columns, seed):
    # sum(w') = N mean + std * sum(n + held): sum(n) is 0, so only sum(held) acts on the deviation.
    weight = normal(rows, columns, seed=seed)
    got = gradient_of(weight, torch.ones_like(weight), bits)
    torch.testing.assert_close(got.mean(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def test_the_number_of_threads_does_not_matter(kernels):
    weight, upstream = normal(300, 700), normal(300, 700, seed=1)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append((lowbit_fake_quantize(weight, 2), gradient_of(weight, upstream, 2)))
    # torch's own reductions, which the torch variant uses, do depend on the threads.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if kernels == "torch" else {"rtol": 0, "atol": 0}
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, **tolerance)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # read by opcheck itself
@pytest.mark.parametrize("exact", [True, False])
def test_opcheck(kernels, exact):
    weight, levels = normal(9, 33).requires_grad_(), lowbit_codebook(2)
    torch.library.opcheck(torch.ops.petkit.lowbit_fake_quantize.default, (weight, levels, 2, exact))
    _, shift, scale = torch.ops.petkit.lowbit_fake_quantize(weight.detach(), levels, 2, exact)
    arguments = (normal(9, 33, seed=1), weight.detach(), shift, scale, levels, 2)
    torch.library.opcheck(torch.ops.petkit.lowbit_fake_quantize_backward.default, arguments)


def test_compiles_into_one_graph(kernels):
    torch.compiler.reset()
    weight = normal(6, 20)
    compiled = torch.compile(lambda w: lowbit_fake_quantize(w, 2) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weight), lowbit_fake_quantize(weight, 2) * 2)


def test_refusals():
    with pytest.raises(InputError, match="gradient must be exact or identity, got 'ste'"):
        lowbit_fake_quantize(normal(2, 3), 1, gradient="ste")
    with pytest.raises(InputError, match=r"weight must be a matrix \(out, in\), got shape \(3,\)"):
        lowbit_fake_quantize(normal(3), 1)
    with pytest.raises(InputError, match="kind must be normal_l1 or petl_vit, got 'nf4'"):
        lowbit_fake_quantize(normal(2, 3), 4, "nf4")


def test_a_second_derivative_is_refused(kernels):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad((lowbit_fake_quantize(weight, 2) ** 2).sum(), weight, create_graph=True)
    with pytest.raises(InputError, match="lowbit_fake_quantize can be differentiated once"):
        gradient.sum().backward()
