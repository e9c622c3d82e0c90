import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import lowbit_codebook, lowbit_dequantize, lowbit_linear, lowbit_quantize
from tests.reference import lowbit
from tests.reference.tolerance import sum_error
from tests.threads import threads

BITS = (1, 2, 4, 8)
# (tokens, out, in): empty, single, odd, below and above the vector widths and blocks, a long row.
SHAPES = [
    (0, 5, 9),
    (3, 5, 0),
    (3, 0, 5),
    (1, 1, 2),
    (1, 63, 63),
    (2, 16, 8),
    (5, 17, 130),
    (7, 768, 8),
    (9, 8, 768),
    (33, 40, 300),
    (1, 2, 65537),
    (65537, 3, 2),
]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_packed(out, columns, bits, seed=0):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (out, columns))
    as_bits = ((codes[..., None] >> np.arange(bits)) & 1).reshape(out, columns * bits).astype(np.uint8)
    packed = torch.from_numpy(np.packbits(as_bits, axis=-1, bitorder="little"))
    return packed, torch.tensor(0.01), torch.tensor(0.3), codes


def dense_of(codes, bits, kind="normal_l1"):
    levels = lowbit_codebook(bits, kind).double().numpy()
    return lowbit.dequantize(codes, float(np.float32(0.01)), float(np.float32(0.3)), levels)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_matches_the_reference(kernels, bits, shape):
    tokens, out, columns = shape
    packed, shift, scale, codes = random_packed(out, columns, bits)
    x, weight = normal(tokens, columns), dense_of(codes, bits)
    y = lowbit_linear(x, packed, shift, scale, bits)
    exact, magnitude = x.double().numpy() @ weight.T, x.double().abs().numpy() @ np.abs(weight).T
    assert y.shape == (tokens, out)
    assert sum_error(y.double().numpy(), exact, magnitude, "float32") <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 40, 70), (6, 17, 130), (20, 64, 64)])
@pytest.mark.parametrize("bits", BITS)
def test_half_precision(kernels, bits, shape, dtype):
    tokens, out, columns = shape
    packed, shift, scale, codes = random_packed(out, columns, bits)
    x, weight = normal(tokens, columns).to(dtype), dense_of(codes, bits)
    y = lowbit_linear(x, packed, shift, scale, bits)
    exact, magnitude = x.double().numpy() @ weight.T, x.double().abs().numpy() @ np.abs(weight).T
    assert y.dtype == dtype
    assert sum_error(y.double().numpy(), exact, magnitude, str(dtype)[6:]) <= 1


@pytest.mark.parametrize("kind", ["normal_l1", "petl_vit"])
def test_both_codebooks_at_8_bits(kernels, kind):
    packed, shift, scale, codes = random_packed(20, 33, 8)
    weight, x = dense_of(codes, 8, kind), normal(3, 33)
    exact, magnitude = x.double().numpy() @ weight.T, x.double().abs().numpy() @ np.abs(weight).T
    y = lowbit_linear(x, packed, shift, scale, 8, kind)
    assert sum_error(y.double().numpy(), exact, magnitude, "float32") <= 1


@pytest.mark.parametrize("shape", [(1, 40, 70), (6, 17, 130), (33, 64, 8), (4, 3, 65)])
@pytest.mark.parametrize("bits", BITS)
def test_gradient_in_x(kernels, bits, shape):
    tokens, out, columns = shape
    packed, shift, scale, codes = random_packed(out, columns, bits)
    x, upstream = normal(tokens, columns).requires_grad_(), normal(tokens, out, seed=1)
    lowbit_linear(x, packed, shift, scale, bits).backward(upstream)
    weight = dense_of(codes, bits)
    exact = upstream.double().numpy() @ weight
    magnitude = upstream.double().abs().numpy() @ np.abs(weight)
    assert sum_error(x.grad.double().numpy(), exact, magnitude, "float32") <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradient(kernels, dtype):
    packed, shift, scale, codes = random_packed(24, 50, 1)
    x, upstream = normal(5, 50).to(dtype).requires_grad_(), normal(5, 24, seed=1).to(dtype)
    lowbit_linear(x, packed, shift, scale, 1).backward(upstream)
    weight = dense_of(codes, 1)
    exact = upstream.double().numpy() @ weight
    magnitude = upstream.double().abs().numpy() @ np.abs(weight)
    assert x.grad.dtype == dtype
    assert sum_error(x.grad.double().numpy(), exact, magnitude, str(dtype)[6:]) <= 1


def test_leading_dimensions_and_strides(kernels):
    packed, shift, scale, _ = random_packed(12, 40, 1)
    x = normal(3, 4, 40)
    flat = lowbit_linear(x.reshape(12, 40), packed, shift, scale, 1)
    assert torch.equal(lowbit_linear(x, packed, shift, scale, 1), flat.view(3, 4, 12))
    # Another number of rows may add in another order.
    torch.testing.assert_close(lowbit_linear(x[0, 0], packed, shift, scale, 1), flat[0])
    strided = normal(40, 12).T
    assert torch.equal(
        lowbit_linear(strided, packed, shift, scale, 1),
        lowbit_linear(strided.contiguous(), packed, shift, scale, 1),
    )


def test_padding_bits_do_not_matter(kernels):
    packed, shift, scale, _ = random_packed(18, 35, 1)
    dirty = packed.clone()
    dirty[:, -1] |= 0b11111000
    x = normal(3, 35)
    assert torch.equal(lowbit_linear(x, packed, shift, scale, 1), lowbit_linear(x, dirty, shift, scale, 1))


def test_one_infinite_input_stays_in_its_row(kernels):
    packed, shift, scale, _ = random_packed(18, 35, 2)
    x = normal(3, 35)
    x[1, 3] = float("inf")
    y = lowbit_linear(x, packed, shift, scale, 2)
    assert torch.isfinite(y[[0, 2]]).all()
    assert not torch.isfinite(y[1]).any()


def test_the_number_of_threads_does_not_matter(kernels):
    packed, shift, scale, _ = random_packed(200, 300, 1)
    x = normal(65, 300)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(lowbit_linear(x, packed, shift, scale, 1))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if kernels == "torch" else {"rtol": 0, "atol": 0}
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, **tolerance)


@given(
    bits=st.sampled_from(BITS),
    tokens=st.integers(1, 6),
    out=st.integers(1, 40),
    columns=st.integers(2, 70),
    seed=st.integers(0, 10**6),
)
def test_equals_the_dense_product(bits, tokens, out, columns, seed):
    packed, shift, scale = lowbit_quantize(normal(out, columns, seed=seed), bits)
    weight = lowbit_dequantize(packed, shift, scale, bits, columns)
    x = normal(tokens, columns, seed=seed + 1)
    magnitude = x.double().abs() @ weight.double().abs().T
    y, exact = lowbit_linear(x, packed, shift, scale, bits), x.double() @ weight.double().T
    assert sum_error(y.double().numpy(), exact.numpy(), magnitude.numpy(), "float32") <= 1


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # read by opcheck itself
@pytest.mark.parametrize("bits", BITS)
def test_opcheck(kernels, bits):
    packed, shift, scale, _ = random_packed(20, 19, bits)
    arguments = (normal(3, 19).requires_grad_(), packed, shift, scale, lowbit_codebook(bits), bits)
    torch.library.opcheck(torch.ops.petkit.lowbit_linear.default, arguments)
    backward = (normal(3, 20), packed, shift, scale, lowbit_codebook(bits), bits, 19)
    torch.library.opcheck(torch.ops.petkit.lowbit_linear_backward.default, backward)


def test_refusals():
    packed, shift, scale, _ = random_packed(5, 17, 1)
    with pytest.raises(
        InputError, match=r"packed must be uint8 \(out, 2\) for 16 codes of 1 bits a row, got .* \(5, 3\)"
    ):
        lowbit_linear(normal(2, 16), packed, shift, scale, 1)
    with pytest.raises(InputError, match=r"x must be float32, bfloat16 or float16, got torch\.float64"):
        lowbit_linear(normal(2, 17).double(), packed, shift, scale, 1)
    with pytest.raises(InputError, match=r"shift must be a float32 scalar, got torch\.float64"):
        lowbit_linear(normal(2, 17), packed, shift.double(), scale, 1)
    for arguments, message in (
        (([1.0], packed, shift, scale), "x must be a tensor, got list"),
        ((normal(2, 17), packed, 0.5, scale), "shift must be a tensor, got float"),
        ((torch.tensor(1.0), packed, shift, scale), r"x must have shape \(\.\.\., in\), got a scalar"),
    ):
        with pytest.raises(InputError, match=message):
            lowbit_linear(*arguments, 1)


def test_the_operator_itself_refuses_what_would_read_out_of_bounds(kernels):
    if kernels == "torch":
        pytest.skip("the default has torch's own bounds checks")
    packed, shift, scale, _ = random_packed(5, 17, 1)
    with pytest.raises(RuntimeError, match="packed"):
        torch.ops.petkit.lowbit_linear(normal(2, 33), packed, shift, scale, lowbit_codebook(1), 1)
    with pytest.raises(RuntimeError, match="levels"):
        torch.ops.petkit.lowbit_linear(normal(2, 17), packed, shift, scale, lowbit_codebook(1)[:1], 1)


def test_the_gradient_has_a_gradient(kernels):
    """A linear map has no second derivative in its input; its gradient is linear as well, by the same W."""
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(9, 20, generator=torch.Generator().manual_seed(1))
    packed, shift, scale = lowbit_quantize(weight, 4)
    dense = lowbit_dequantize(packed, shift, scale, 4, 20)

    def penalty(y):
        (gradient,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        return torch.autograd.grad((gradient**2).sum(), x)[0]

    got = penalty(lowbit_linear(x, packed, shift, scale, 4))
    expected = penalty(x @ dense.T)
    np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-4, atol=1e-3)
