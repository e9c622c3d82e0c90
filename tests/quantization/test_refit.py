import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import lowbit_codebook
from petkit.quantization.nearest import nearest
from petkit.quantization.refit import DAMPING, least_squares, reassign_codes, refit_shift_scale
from tests.reference.least_squares import damped_inputs, fit_shift_scale, output_error


def case(seed, rows=5, columns=12, tokens=40):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator) * 0.03 + 0.01
    return weight, torch.randn(tokens, columns, generator=generator) @ mixing


def squared(weight, packed, inputs):
    difference = weight.double() - torch.from_numpy(packed.dequantize()).double()
    return float((inputs.double() @ difference.T).square().sum())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("calibrated", [False, True])
def test_shift_and_scale_agree_with_the_reference(bits, calibrated):
    weight, inputs = case(bits)
    levels = lowbit_codebook(bits)[torch.from_numpy(nearest(weight, bits).codes())]
    moment = inputs.double().T @ inputs.double() if calibrated else None
    expected = fit_shift_scale(weight, levels, inputs if calibrated else None)
    # The 2 x 2 system squares the condition number of the reference's design matrix.
    assert refit_shift_scale(weight, levels, moment) == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("bits", [1, 4])
def test_least_squares_with_inputs_is_the_damped_reference(bits):
    weight, inputs = case(7)
    packed = least_squares(weight, bits, second_moment=inputs.double().T @ inputs.double())
    levels = lowbit_codebook(bits)[torch.from_numpy(packed.codes())]
    expected = fit_shift_scale(weight, levels, damped_inputs(inputs, DAMPING))
    # PackedMatrix keeps shift and scale in float32.
    assert (packed.shift, packed.scale) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@given(seed=st.integers(0, 10_000), bits=st.sampled_from([1, 2, 4]), rounds=st.integers(0, 3))
def test_a_refit_never_loses_more_than_the_moments_do(seed, bits, rounds):
    weight, inputs = case(seed, rows=3, columns=6)
    moment = inputs.double().T @ inputs.double()
    identity, damped = np.eye(6), damped_inputs(inputs, DAMPING)
    for second_moment, seen in ((None, identity), (moment, damped)):
        refitted = squared(
            weight,
            least_squares(weight, bits, second_moment=second_moment, rounds=rounds),
            torch.tensor(seen),
        )
        # Rounding of shift and scale to float32 may cost a millionth.
        assert refitted <= squared(weight, nearest(weight, bits), torch.tensor(seen)) * (1 + 1e-5) + 1e-12


def test_rounds_lower_the_output_error_further():
    weight, inputs = case(3, rows=16, columns=32, tokens=400)
    moment = inputs.double().T @ inputs.double()
    errors = [
        output_error(
            weight, least_squares(weight, 1, second_moment=moment, rounds=rounds).dequantize(), inputs
        )
        for rounds in (0, 1, 4)
    ]
    plain = output_error(weight, nearest(weight, 1).dequantize(), inputs)
    assert plain > errors[0] > errors[1] >= errors[2]


def test_reassignment_without_inputs_is_the_nearest_level():
    weight, _ = case(1)
    book = lowbit_codebook(2)
    codes = torch.zeros(weight.shape, dtype=torch.int64)
    expected = (weight.double()[..., None] - (0.01 + 0.05 * book.double())).abs().argmin(-1)
    assert torch.equal(reassign_codes(weight, codes, 0.01, 0.05, book), expected)


def test_reassignment_leaves_a_column_that_no_input_reaches():
    weight, inputs = case(2)
    inputs[:, 3] = 0
    codes = torch.from_numpy(nearest(weight, 2).codes())
    new = reassign_codes(weight, codes, 0.0, 0.03, lowbit_codebook(2), inputs.T @ inputs)
    assert torch.equal(new[:, 3], codes[:, 3])


def test_a_constant_matrix_comes_back_as_it_was():
    packed = least_squares(torch.full((4, 4), -0.5), 1, rounds=2)
    np.testing.assert_allclose(packed.dequantize(), -0.5, atol=1e-6)


def test_equal_levels_leave_the_scale_undetermined():
    assert refit_shift_scale(torch.tensor([[1.0, 3.0]]), torch.full((1, 2), 0.5)) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: refit_shift_scale(w, w[:, 1:]), "levels must have shape"),
        (lambda w: refit_shift_scale(w, w, torch.eye(3)), r"second_moment must have shape \(12, 12\)"),
        (lambda w: least_squares(w, 1, second_moment=torch.eye(3)), r"finite with shape \(12, 12\)"),
        (lambda w: least_squares(w, 1, second_moment=torch.full((12, 12), torch.nan)), "must be finite"),
        (lambda w: least_squares(w, 1, rounds=-1), "rounds must be at least 0, got -1"),
        (lambda w: reassign_codes(w, w.long(), 0.0, 0.0, lowbit_codebook(1)), "scale must be positive"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call(case(0)[0])
