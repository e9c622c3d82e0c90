import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import lowbit_codebook, lowbit_dequantize, lowbit_quantize
from tests.reference import lowbit
from tests.threads import threads

BITS = (1, 2, 4, 8)
SHAPES = [(1, 2), (2, 1), (1, 63), (63, 1), (5, 7), (3, 65), (32, 96), (1, 65537)]


def normal(*shape, seed=0, mean=0.0, std=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std + mean


def check_against_reference(weight, bits, kind="normal_l1"):
    levels = lowbit_codebook(bits, kind).double().numpy()
    packed, shift, scale = lowbit_quantize(weight, bits, kind)
    exact = weight.double().numpy()
    _, mean, std = lowbit.quantize(exact, levels)
    assert shift.item() == pytest.approx(mean, rel=1e-6, abs=1e-7 * std)
    assert scale.item() == pytest.approx(std, rel=2e-7)
    codes = lowbit.codes_given(exact, shift.item(), scale.item(), levels)
    np.testing.assert_array_equal(packed.numpy(), lowbit.pack_rows(codes, bits))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_matches_the_reference(kernels, bits, shape):
    check_against_reference(normal(*shape, mean=0.1, std=0.04), bits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", BITS)
def test_half_precision_weights(kernels, bits, dtype):
    check_against_reference(normal(33, 70).to(dtype), bits)


@pytest.mark.parametrize("bits", BITS)
def test_the_original_table(kernels, bits):
    check_against_reference(normal(16, 48), bits, "petl_vit")


def test_weights_that_do_not_lie_in_order(kernels):
    weight = normal(40, 30)
    for view in (weight.T, weight[::2, 1::3]):
        got, expected = lowbit_quantize(view, 2), lowbit_quantize(view.contiguous(), 2)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_codes_are_the_nearest_levels(kernels):
    weight = normal(20, 50)
    packed, _, _ = lowbit_quantize(weight, 4)
    codes, _, _ = lowbit.quantize(weight.double().numpy(), lowbit_codebook(4).double().numpy())
    np.testing.assert_array_equal(lowbit.unpack_rows(packed.numpy(), 4, 50), codes)


@pytest.mark.parametrize("bits", BITS)
def test_a_tie_takes_the_lower_level(kernels, bits):
    # Mean and median 0 are exact here, and 0 lies midway between the two inner levels.
    weight = torch.tensor([[-1.0, 0.0, 1.0]])
    codes = lowbit.unpack_rows(lowbit_quantize(weight, bits)[0].numpy(), bits, 3)
    assert codes[0, 1] == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("constant", [0.0, 1.5, -1000.25, 3e-39])
@pytest.mark.parametrize("bits", BITS)
def test_a_constant_matrix_comes_back_exactly(kernels, bits, constant):
    weight = torch.full((5, 9), constant)
    packed, shift, scale = lowbit_quantize(weight, bits)
    assert scale.item() == 0
    assert set(lowbit.unpack_rows(packed.numpy(), bits, 9).flat) == {2 ** (bits - 1) - 1}
    assert torch.equal(lowbit_dequantize(packed, shift, scale, bits, 9), weight)


def test_moments_far_from_zero(kernels):
    # A naive sum of squares would lose the deviation next to this mean.
    weight = normal(64, 64, mean=4096.0, std=0.5)
    _, shift, scale = lowbit_quantize(weight, 1)
    exact = weight.double()
    assert shift.item() == pytest.approx(exact.mean().item(), rel=1e-7)
    assert scale.item() == pytest.approx(exact.std().item(), rel=2e-7)


def test_the_number_of_threads_does_not_matter(kernels):
    weight = normal(300, 1000, std=0.1)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(lowbit_quantize(weight, 2))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@given(
    bits=st.sampled_from(BITS),
    rows=st.integers(1, 9),
    columns=st.integers(2, 70),
    seed=st.integers(0, 10**6),
)
def test_quantising_twice_changes_nothing(bits, rows, columns, seed):
    # The second pass sees another mean and deviation, so this holds for the first pass's own shift and scale.
    weight = normal(rows, columns, seed=seed)
    levels = lowbit_codebook(bits).double().numpy()
    packed, shift, scale = lowbit_quantize(weight, bits)
    dense = lowbit_dequantize(packed, shift, scale, bits, columns).double().numpy()
    again = lowbit.codes_given(dense, shift.item(), scale.item() - lowbit.EPSILON, levels)
    np.testing.assert_array_equal(again, lowbit.unpack_rows(packed.numpy(), bits, columns))


@given(
    bits=st.sampled_from(BITS),
    seed=st.integers(0, 10**6),
    power=st.integers(-3, 3),
    offset=st.integers(-4, 4),
)
def test_codes_do_not_change_under_a_positive_affine_map(bits, seed, power, offset):
    # Powers of two and small integers keep the map exact; eps is the only thing that does not scale along.
    weight = (normal(6, 40, seed=seed) * 256).round() / 256
    mapped = weight * 2.0**power + offset
    codes, other = (
        lowbit.unpack_rows(lowbit_quantize(w, bits)[0].numpy(), bits, 40) for w in (weight, mapped)
    )
    levels = lowbit_codebook(bits).double().numpy()
    normalised = (weight - weight.mean()) / weight.std()
    thresholds = torch.from_numpy((levels[1:] + levels[:-1]) / 2)
    margin = (normalised[..., None] - thresholds).abs().amin(-1).numpy()
    np.testing.assert_array_equal(codes[margin > 1e-3], other[margin > 1e-3])


@pytest.mark.parametrize("bits", BITS)
def test_opcheck(kernels, bits):
    torch.library.opcheck(
        torch.ops.petkit.lowbit_quantize.default, (normal(9, 33), lowbit_codebook(bits), bits)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(kernels, value):
    weight = normal(7, 40)
    weight[3, 17] = value
    weight[5, 2] = value
    with pytest.raises(
        InputError, match=r"weight must be finite, got -?(nan|inf) at \[3, 17\] \(2 of 280 values"
    ):
        lowbit_quantize(weight, 1)


def test_refusals():
    with pytest.raises(InputError, match=r"weight must be a matrix \(out, in\), got shape \(2, 3, 4\)"):
        lowbit_quantize(torch.ones(2, 3, 4), 1)
    with pytest.raises(InputError, match=r"at least 2 values for a standard deviation, got shape \(1, 1\)"):
        lowbit_quantize(torch.ones(1, 1), 1)
    with pytest.raises(InputError, match=r"at least 2 values for a standard deviation, got shape \(0, 5\)"):
        lowbit_quantize(torch.ones(0, 5), 1)
    with pytest.raises(InputError, match=r"weight must be float32, bfloat16 or float16, got torch\.float64"):
        lowbit_quantize(torch.ones(2, 3, dtype=torch.float64), 1)
    with pytest.raises(InputError, match="bits must be 1, 2, 4 or 8, got 3"):
        lowbit_quantize(torch.ones(2, 3), 3)
