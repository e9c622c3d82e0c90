from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import crf_log_partition
from tests.ops.crf_cases import DTYPES, LARGE, SMALL, Inputs, close, inputs, long_case, rows
from tests.reference import crf as reference
from tests.threads import threads


def gradients_of(arguments: Inputs, weights):
    live = [part.clone().requires_grad_(part.is_floating_point()) for part in arguments]
    (crf_log_partition(*live) * weights).sum().backward()
    return [part.grad for part in live if part.is_floating_point()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SMALL)
def test_sums_over_every_path(kernels, shape, dtype):
    arguments = inputs(*shape, dtype)
    found = crf_log_partition(*arguments)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(found, [reference.enumerated(*row)["log_z"] for row in rows(arguments)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE)
def test_matches_the_recursion(kernels, shape, dtype):
    arguments = inputs(*shape, dtype)
    close(
        crf_log_partition(*arguments), [reference.recursed(*row)["log_z"] for row in rows(arguments)], dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SMALL + LARGE)
def test_gradients_are_expectations(kernels, shape, dtype):
    arguments = inputs(*shape, dtype)
    weights = torch.linspace(-1, 2, shape[0])
    emissions, *parameters = gradients_of(arguments, weights)
    expected = [np.zeros(part.shape) for part in arguments[2:]]
    for b, row in enumerate(rows(arguments)):
        of_emissions, *of_parameters = reference.gradients(*row)
        valid = arguments.mask[b]
        # One rounding of the stored gradient on top of the sums.
        rounding = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, 0.0)
        exact = float(weights[b]) * of_emissions
        allowed = rounding * np.abs(exact) + 1e-6 + 6e-8
        assert (np.abs(emissions[b][valid].double().numpy() - exact) <= allowed).all()
        assert not emissions[b][~valid].any()
        for total, part in zip(expected, of_parameters, strict=True):
            total += float(weights[b]) * part
    assert emissions.dtype == dtype
    for found, exact in zip(parameters, expected, strict=True):
        # Sums over the batch and time of numbers up to 2.
        close(found, exact, dtype, scale=3.0)


def test_gradcheck_in_float64(kernels):
    arguments = inputs(3, 4, 3, torch.float64)
    live = [part.requires_grad_(part.is_floating_point()) for part in arguments]
    assert torch.autograd.gradcheck(crf_log_partition, live)


def test_any_layout(kernels):
    arguments = inputs(4, 6, 5)
    time_first = arguments.emissions.transpose(0, 1).contiguous().transpose(0, 1)
    every_other = torch.stack([arguments.emissions] * 2, -1)[..., 0]
    expected = crf_log_partition(*arguments)
    mask = arguments.mask.t().contiguous().t()
    transposed = arguments.transitions.t().contiguous().t()
    for emissions in (time_first, every_other):
        got = crf_log_partition(emissions, mask, transposed, *arguments[3:])
        assert torch.equal(got, expected)


def test_a_gap_is_skipped(kernels):
    arguments = inputs(2, 7, 4)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1]] * 2).bool()
    kept = arguments.emissions[:, mask[0]]
    alone = crf_log_partition(kept, torch.ones(2, 4, dtype=torch.bool), *arguments[2:])
    assert torch.equal(crf_log_partition(arguments.emissions, mask, *arguments[2:]), alone)


def test_masked_positions_may_hold_anything(kernels):
    arguments = inputs(4, 6, 5)
    expected = crf_log_partition(*arguments)
    spoiled = arguments.emissions.masked_fill(~arguments.mask[:, :, None], torch.nan)
    assert torch.equal(crf_log_partition(spoiled, *arguments[1:]), expected)
    emissions, *_ = gradients_of(arguments._replace(emissions=spoiled), torch.ones(4))
    assert torch.isfinite(emissions).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_whose_gradient_is_zero_adds_nothing(kernels, dtype):
    arguments = inputs(4, 6, 5, dtype)
    spoiled = arguments.emissions.clone()
    spoiled[1], spoiled[3, 0] = torch.nan, -torch.inf
    weights, kept = torch.tensor([1.0, 0, -2, 0]).to(arguments.start.dtype), [0, 2]
    backward = torch.ops.petkit.crf_log_partition_backward
    emissions, *parameters = backward(weights, spoiled, *arguments[1:])
    few = (arguments.emissions[kept], arguments.mask[kept], *arguments[2:])
    expected, *sums = backward(weights[kept], *few)
    assert not emissions[[1, 3]].any()
    torch.testing.assert_close(emissions[kept], expected)
    torch.testing.assert_close(parameters, sums)


def test_an_empty_time_axis_has_one_empty_path(kernels):
    arguments = inputs(3, 0, 2)
    assert crf_log_partition(*arguments).tolist() == [0, 0, 0]
    emissions, *parameters = gradients_of(arguments, torch.ones(3))
    assert emissions.shape == (3, 0, 2)
    assert not any(part.any() for part in parameters)


@pytest.mark.parametrize("forbidden", [-torch.inf, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forbidden_transitions(kernels, forbidden, dtype):
    arguments = inputs(4, 6, 20, dtype)
    generator = torch.Generator().manual_seed(1)
    arguments.transitions[torch.rand((20, 20), generator=generator) < 0.6] = forbidden
    arguments.start[3:] = forbidden
    arguments.transitions[:, 7] = forbidden
    arguments.emissions[:, :, 8] = forbidden
    with np.errstate(invalid="ignore"):
        expected = [reference.recursed(*row) for row in rows(arguments)]
    close(crf_log_partition(*arguments), [row["log_z"] for row in expected], dtype)
    emissions, transitions, *_ = gradients_of(arguments, torch.ones(4))
    counts = sum(np.nan_to_num(row["counts"]) for row in expected)
    np.testing.assert_allclose(transitions.double().numpy(), counts, rtol=0, atol=2e-5)
    for b, row in enumerate(expected):
        got = emissions[b][arguments.mask[b]].double().numpy()
        np.testing.assert_allclose(got, np.nan_to_num(row["marginals"]), rtol=0, atol=2e-6)


def test_a_path_far_below_all_others_is_not_lost(kernels):
    """A tag that lies 500 nats behind may be the only one that the next step leaves."""
    arguments = inputs(3, 12, 18, gaps=False)
    arguments.emissions[:, ::2, 0] -= 500
    arguments.emissions[:, ::3, 5] += 700
    arguments.transitions[5, :] -= 300
    arguments.transitions[1:, 0] = -1e4
    expected = [reference.recursed(*row) for row in rows(arguments)]
    # Scores of thousands: what counts is their last digit in float32.
    close(crf_log_partition(*arguments), [row["log_z"] for row in expected], torch.float32)
    emissions, transitions, *_ = gradients_of(arguments, torch.ones(3))
    # Scores of 700 have a last digit of 6e-5, which is what probabilities are known to.
    np.testing.assert_allclose(transitions.numpy(), sum(row["counts"] for row in expected), atol=1e-3)
    for b, row in enumerate(expected):
        got = emissions[b][arguments.mask[b]].double().numpy()
        np.testing.assert_allclose(got, row["marginals"], rtol=0, atol=1e-3)


def test_a_long_sequence_keeps_its_digits(kernels):
    # Plain torch takes a while for each step.
    arguments, expected = long_case(5000 if kernels == "torch" else 100_000)
    found = crf_log_partition(*arguments)
    # The sum itself is above 1e5: its last digit in float32 is 0.008 there.
    np.testing.assert_allclose(float(found), expected["log_z"], rtol=2e-7)
    emissions, transitions, *_ = gradients_of(arguments, torch.ones(1))
    np.testing.assert_allclose(emissions[0].double().numpy(), expected["marginals"], rtol=0, atol=3e-6)
    np.testing.assert_allclose(transitions.double().numpy(), expected["counts"], rtol=1e-5)


@pytest.mark.parametrize("tags", [1024])
def test_many_tags(kernels, tags):
    arguments = inputs(2, 5, tags)
    close(
        crf_log_partition(*arguments),
        [reference.recursed(*row)["log_z"] for row in rows(arguments)],
        torch.float32,
    )
    _, transitions, *_ = gradients_of(arguments, torch.ones(2))
    counts = sum(reference.recursed(*row)["counts"] for row in rows(arguments))
    np.testing.assert_allclose(transitions.double().numpy(), counts, rtol=2e-5, atol=1e-7)


def test_threads_and_neighbours_do_not_change_a_bit(kernels):
    arguments = inputs(19, 23, 21)
    with threads(3):
        together = crf_log_partition(*arguments), *gradients_of(arguments, torch.linspace(1, 2, 19))
    with threads(1):
        alone = crf_log_partition(*arguments), *gradients_of(arguments, torch.linspace(1, 2, 19))
    for one, two in zip(together, alone, strict=True):
        assert torch.equal(one, two)


def test_mixed_dtypes_compute_in_the_wider(kernels):
    arguments = inputs(2, 3, 4)
    double = arguments._replace(transitions=arguments.transitions.double())
    assert crf_log_partition(*double).dtype == torch.float64
    half = [part.bfloat16() if part.is_floating_point() else part for part in arguments]
    found = gradients_of(Inputs(*half), torch.ones(2))
    assert {part.dtype for part in found} == {torch.bfloat16}


def test_a_backward_under_autocast_is_not_rounded(kernels):
    arguments = inputs(3, 9, 5)
    expected = gradients_of(arguments, torch.ones(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients_of(arguments, torch.ones(3))
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


def test_only_what_asks_for_a_gradient_gets_one(kernels):
    arguments = inputs(2, 3, 4)
    arguments.start.requires_grad_()
    crf_log_partition(*arguments).sum().backward()
    expected = gradients_of(Inputs(*(part.detach() for part in arguments)), torch.ones(2))
    assert torch.equal(arguments.start.grad, expected[2])


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # read by opcheck itself
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(kernels, dtype):
    arguments = inputs(3, 5, 4, dtype)
    live = [part.clone().requires_grad_(part.is_floating_point()) for part in arguments]
    torch.library.opcheck(torch.ops.petkit.crf_log_partition.default, live)
    grad = torch.ones(3, dtype=arguments.start.dtype)
    torch.library.opcheck(torch.ops.petkit.crf_log_partition_backward.default, (grad, *arguments))


def test_under_compile_and_export():
    arguments = inputs(2, 5, 3)

    class Module(torch.nn.Module):
        def forward(self, *parts):
            return crf_log_partition(*parts)

    compiled = torch.compile(Module(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), crf_log_partition(*arguments))
    time = torch.export.Dim("time", min=2, max=64)
    shapes = {"parts": ({1: time}, {1: time}, {}, {}, {})}
    exported = torch.export.export(Module(), tuple(arguments), dynamic_shapes=shapes)
    longer = inputs(2, 9, 3)
    assert torch.equal(exported.module()(*longer), crf_log_partition(*longer))


def without(arguments: Inputs, **changes) -> Inputs:
    return arguments._replace(**changes)


GOOD = inputs(2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"emissions": torch.zeros(2, 3, 4, dtype=torch.int64)},
            "emissions must be float32, float64, bfloat16",
        ),
        (
            {"emissions": torch.zeros(3, 4)},
            r"emissions must be \(batch, time, tags\) with tags >= 1, got \(3, 4\)",
        ),
        ({"emissions": torch.zeros(2, 3, 0)}, r"tags >= 1, got \(2, 3, 0\)"),
        ({"emissions": [1.0]}, "emissions must be a tensor, got list"),
        ({"mask": torch.ones(2, 3)}, r"mask must be bool \(2, 3\), got torch.float32 \(2, 3\)"),
        (
            {"mask": torch.ones(3, 2, dtype=torch.bool)},
            r"mask must be bool \(2, 3\), got torch.bool \(3, 2\)",
        ),
        ({"mask": None}, "mask must be a tensor, got NoneType"),
        (
            {"transitions": torch.zeros(4, 3)},
            r"transitions must be \(4, 4\) for emissions \(2, 3, 4\), got \(4, 3\)",
        ),
        ({"start": torch.zeros(3)}, r"start must be \(4,\) for emissions"),
        ({"end": torch.zeros(4, dtype=torch.int32)}, "end must be float32"),
        ({"mask": torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()}, r"mask\[1\] is set nowhere: a sequence must"),
        ({"mask": torch.tensor([[0, 1, 0], [1, 0, 0]]).bool()}, r"mask\[0\] is not set at time 0"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(InputError, match=message):
        crf_log_partition(*GOOD._replace(**changes))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_emissions_that_are_not_numbers_are_named(kernels, bad):
    arguments = inputs(3, 5, 4, gaps=False)
    arguments.mask[1] = True
    arguments.emissions[1, 3, 2] = bad
    with pytest.raises(InputError, match=f"finite or -inf, got {bad} at batch 1, time 3"):
        crf_log_partition(*arguments)


def test_parameters_that_are_not_numbers_are_named(kernels):
    arguments = inputs(3, 5, 4)
    arguments.transitions[2, 1] = torch.nan
    with pytest.raises(InputError, match=r"transitions must be finite or -inf, got nan at \[2, 1\]"):
        crf_log_partition(*arguments)


def test_a_row_without_a_path_is_named(kernels):
    arguments = inputs(3, 5, 4)
    arguments.mask[:] = True
    arguments.emissions[2, 3] = -torch.inf
    with pytest.raises(InputError, match="no path is possible at batch 2"):
        crf_log_partition(*arguments)


small = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 20), st.integers(0, 10))


@given(small, st.floats(-50, 50, width=32))
def test_a_constant_at_a_position_moves_the_sum_by_itself(shape, offset):
    arguments = inputs(*shape[:3], seed=shape[3])
    moved = arguments._replace(emissions=arguments.emissions.clone())
    moved.emissions[:, 0] += offset
    difference = (crf_log_partition(*moved) - crf_log_partition(*arguments)).numpy()
    np.testing.assert_allclose(difference, offset, rtol=0, atol=2e-4)


@given(small)
def test_reading_backwards_sums_over_the_same_paths(shape):
    arguments = inputs(*shape[:3], seed=shape[3], gaps=False)
    arguments.mask[:] = True
    emissions, mask, transitions, start, end = arguments
    backwards = crf_log_partition(emissions.flip(1), mask, transitions.t(), end, start)
    np.testing.assert_allclose(backwards.numpy(), crf_log_partition(*arguments).numpy(), rtol=1e-6, atol=1e-5)


def test_a_second_derivative_is_refused(kernels):
    arguments = inputs(2, 4, 3)
    live = arguments.emissions.clone().requires_grad_()
    log_z = crf_log_partition(live, *arguments[1:]).sum()
    (gradient,) = torch.autograd.grad(log_z, live, create_graph=True)
    with pytest.raises(InputError, match="crf_log_partition can be differentiated once"):
        (gradient**2).sum().backward()
