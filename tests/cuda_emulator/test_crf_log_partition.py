from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda_emulator.crf_support import SHAPES, far_below, forbidding, run
from tests.cuda_emulator.support import from_bits
from tests.ops.crf_cases import DTYPES, TOLERANCE, close, inputs, long_case, rows
from tests.reference import crf as reference


def log_z(arguments):
    return [float(reference.recursed(*row)["log_z"]) for row in rows(arguments)]


def forward(cuda_crf, arguments):
    return torch.from_numpy(run(cuda_crf, "crf_log_partition", arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_recursion(cuda_crf, shape, dtype):
    arguments = inputs(*shape, dtype)
    found = forward(cuda_crf, arguments)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(found, log_z(arguments), dtype)


def test_sums_over_every_path(cuda_crf):
    arguments = inputs(4, 5, 3)
    close(
        forward(cuda_crf, arguments),
        [reference.enumerated(*row)["log_z"] for row in rows(arguments)],
        torch.float32,
    )


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2)])
def test_nothing_to_sum(cuda_crf, shape):
    assert forward(cuda_crf, inputs(*shape)).tolist() == [0] * shape[0]


def test_rows_with_few_positions(cuda_crf):
    """The device does not look at the mask: none is the empty path, and a row begins where it is set."""
    arguments = inputs(3, 5, 4)
    arguments.mask[1] = False
    arguments.mask[2] = torch.tensor([0, 0, 1, 0, 1]).bool()
    arguments.emissions[~arguments.mask] = torch.nan
    found = forward(cuda_crf, arguments)
    assert found[1] == 0
    kept = list(rows(arguments))
    close(found[[0, 2]], [reference.recursed(*kept[row])["log_z"] for row in (0, 2)], torch.float32)


@pytest.mark.parametrize("forbidden", [-torch.inf, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forbidden_transitions(cuda_crf, forbidden, dtype):
    arguments = forbidding(forbidden, dtype)
    with np.errstate(invalid="ignore"):
        close(forward(cuda_crf, arguments), log_z(arguments), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_far_below_all_others_is_not_lost(cuda_crf, dtype):
    arguments = far_below(dtype)
    close(forward(cuda_crf, arguments), log_z(arguments), dtype)


def test_a_row_without_a_path(cuda_crf):
    arguments = inputs(2, 4, 3, gaps=False)
    arguments.mask[:] = True
    arguments.emissions[1, 2] = -torch.inf
    found = forward(cuda_crf, arguments)
    assert found[1] == -torch.inf
    close(found[:1], reference.recursed(*next(rows(arguments)))["log_z"], torch.float32)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [(0, 2), (2, 0), (4, 3)])
def test_what_is_no_number_shows_in_its_row_and_no_other(cuda_crf, bad, place):
    arguments = inputs(2, 5, 4, gaps=False)
    arguments.mask[:] = True
    # No path leads there.
    arguments.transitions[:, 0] = -torch.inf
    expected = forward(cuda_crf, arguments)
    arguments.emissions[1][place] = bad
    found = forward(cuda_crf, arguments)
    assert torch.isnan(found[1])
    assert found[0] == expected[0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["transitions", "start", "end"])
def test_parameters_that_are_no_numbers_show(cuda_crf, name, bad):
    arguments = inputs(2, 5, 4)
    arguments.transitions[:] = -torch.inf if name == "transitions" else 0.0
    getattr(arguments, name).view(-1)[2] = bad
    assert torch.isnan(forward(cuda_crf, arguments)[0])


def test_a_long_sequence_keeps_its_digits(cuda_crf):
    arguments, expected = long_case(5000)
    np.testing.assert_allclose(float(forward(cuda_crf, arguments)), expected["log_z"], rtol=2e-7)


def test_rows_of_tags_that_no_shared_memory_holds(cuda_crf):
    arguments = inputs(1, 2, 1800, torch.float64)
    emissions, (transitions, start, end) = next(rows(arguments))
    paths = (emissions[0] + start)[:, None] + transitions + emissions[1] + end
    close(forward(cuda_crf, arguments), [reference.logsumexp(paths)], torch.float64)


def gradients(cuda_crf, arguments, weights):
    """Gradients of the emissions, transitions, start and end, in float64."""
    dtype, wide = str(arguments.emissions.dtype)[6:], arguments.start.numpy().dtype
    found = run(cuda_crf, "crf_log_partition_backward", arguments, np.asarray(weights, wide))
    return from_bits(found[0], dtype), *(part.astype(np.float64) for part in found[1:])


def check_gradients(cuda_crf, arguments, weights, allowed=None):
    """`allowed` is the error of probabilities where it is not that of their rounding."""
    dtype = arguments.emissions.dtype
    emissions, *parameters = gradients(cuda_crf, arguments, weights)
    expected = [np.zeros(part.shape) for part in arguments[2:]]
    # One rounding of the stored gradient on top of the sums.
    rounding = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, 0.0)
    for b, row in enumerate(rows(arguments)):
        with np.errstate(invalid="ignore"):
            of_emissions, *of_parameters = (np.nan_to_num(part) for part in reference.gradients(*row))
        valid = arguments.mask[b].numpy()
        exact = weights[b] * of_emissions
        bound = rounding * np.abs(exact) + (allowed or 1e-6) + 6e-8
        assert (np.abs(emissions[b][valid] - exact) <= bound).all()
        assert not emissions[b][~valid].any()
        for total, part in zip(expected, of_parameters, strict=True):
            total += weights[b] * part
    # Sums over the batch and time of numbers up to 2.
    bound = allowed or 3 * TOLERANCE[dtype]
    for found, exact in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_gradients_are_expectations(cuda_crf, shape, dtype):
    check_gradients(cuda_crf, inputs(*shape, dtype), np.linspace(-1, 2, shape[0]))


def test_gradients_of_more_tags_than_a_block_has_threads(cuda_crf):
    check_gradients(cuda_crf, inputs(*SHAPES[-1]), [1.5])


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2)])
def test_gradients_of_nothing(cuda_crf, shape):
    emissions, *parameters = gradients(cuda_crf, inputs(*shape), np.ones(shape[0]))
    assert emissions.shape == shape
    assert not any(part.any() for part in parameters)


def test_gradients_of_rows_with_few_positions(cuda_crf):
    arguments = inputs(3, 5, 4)
    arguments.mask[1] = False
    arguments.mask[2] = torch.tensor([0, 0, 1, 0, 1]).bool()
    arguments.emissions[~arguments.mask] = torch.nan
    full = arguments._replace(emissions=arguments.emissions[[0, 2]], mask=arguments.mask[[0, 2]])
    check_gradients(cuda_crf, full, [1.0, 2.0])
    alone, found = gradients(cuda_crf, full, [1.0, 2.0]), gradients(cuda_crf, arguments, [1.0, 3.0, 2.0])
    assert not found[0][1].any()
    np.testing.assert_array_equal(found[0][[0, 2]], alone[0])
    for one, two in zip(found[1:], alone[1:], strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("forbidden", [-torch.inf, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_with_forbidden_transitions(cuda_crf, forbidden, dtype):
    check_gradients(cuda_crf, forbidding(forbidden, dtype), [1.0, 0.5, -1.0], allowed=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_where_likelihoods_change_by_hundreds(cuda_crf, dtype):
    # Scores of 700 have a last digit of 6e-5 in float32, which is what probabilities are known to.
    check_gradients(cuda_crf, far_below(dtype), [1.0, 1.0, 1.0], 1e-3 if dtype == torch.float32 else 1e-9)


def test_gradients_of_many_steps(cuda_crf):
    """Several parts, each of several chunks, with a tail."""
    check_gradients(cuda_crf, inputs(3, 400, 3), [1.0, 0.5, -0.5])


def test_a_row_of_weight_zero_adds_nothing(cuda_crf):
    arguments, weights = inputs(4, 7, 5), [1.0, 0.0, -2.0, 0.0]
    expected = gradients(cuda_crf, arguments, weights)
    arguments.emissions[1], arguments.emissions[3, 0] = torch.nan, -torch.inf
    found = gradients(cuda_crf, arguments, weights)
    assert not found[0][[1, 3]].any()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_nan_shows_in_the_gradient_of_its_row(cuda_crf):
    arguments = inputs(2, 5, 4)
    arguments.mask[:] = True
    arguments.emissions[1, 4, 0] = torch.nan
    emissions, *_ = gradients(cuda_crf, arguments, [1.0, 1.0])
    assert np.isnan(emissions[1]).all()
    assert np.isfinite(emissions[0]).all()
