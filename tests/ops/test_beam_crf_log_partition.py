from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import beam_crf_log_partition, beam_crf_viterbi, crf_log_partition
from petkit.ops.beam_crf_log_partition import log_partition_and_score
from tests.ops.beam_crf_cases import SHAPES, Inputs, inputs, rows
from tests.ops.crf_cases import DTYPES, close
from tests.reference import beam as reference
from tests.reference.crf import logsumexp
from tests.threads import threads


def run(arguments: Inputs, with_targets=False):
    *call, targets = arguments
    return beam_crf_log_partition(*call, targets if with_targets else None)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_recursion_over_the_candidates(kernels, shape, dtype, with_targets, dynamic):
    arguments = inputs(*shape, dtype, dynamic=dynamic)
    *call, targets = arguments
    found, score = log_partition_and_score(*call, targets if with_targets else None)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = []
    for emissions, wanted, factors in rows(arguments):
        chosen = reference.candidates(emissions, arguments.beam, wanted if with_targets else None)
        expected.append(reference.recursed(emissions, chosen, *factors)[0])
    close(found, expected, dtype, scale=2)
    if with_targets:
        exact = [
            reference.score(wanted, emissions, *factors) for emissions, wanted, factors in rows(arguments)
        ]
        close(score, exact, dtype, scale=2)
    else:
        assert score.shape == (0,)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_beam_of_the_whole_vocabulary_sums_over_every_path(kernels, dynamic):
    arguments = inputs(3, 4, 5, 2, 5, dynamic=dynamic)
    expected = [logsumexp(reference.all_scores(row, *factors)) for row, _, factors in rows(arguments)]
    close(run(arguments), expected, torch.float32)
    close(run(arguments._replace(beam=1000)), expected, torch.float32)


def test_is_the_linear_chain_when_nothing_is_left_out(kernels):
    arguments = inputs(4, 9, 12, 3, 12, dynamic=False)
    zeros = torch.zeros(12)
    matrix = arguments.left @ arguments.right.T
    expected = crf_log_partition(arguments.emissions, arguments.mask, matrix, zeros, zeros)
    close(run(arguments), expected.double().numpy(), torch.float32)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_expectations(kernels, shape, dtype, dynamic):
    arguments = inputs(*shape, dtype, dynamic=dynamic)
    live = [part.clone().requires_grad_() for part in (arguments.emissions, arguments.left, arguments.right)]
    matrices = arguments.dynamic.clone().requires_grad_() if dynamic else None
    weights = torch.linspace(-1, 2, shape[0])
    found = beam_crf_log_partition(
        live[0], arguments.mask, live[1], live[2], arguments.beam, matrices, arguments.targets
    )
    (found * weights).sum().backward()
    of_left, of_right = np.zeros(live[1].shape), np.zeros(live[2].shape)
    for b, (emissions, wanted, factors) in enumerate(rows(arguments)):
        chosen, weight = reference.candidates(emissions, arguments.beam, wanted), float(weights[b])
        of_emissions, *of_factors, of_matrices = reference.gradients(emissions, chosen, *factors)
        valid = arguments.mask[b]
        # One rounding of the stored gradient on top of the sums.
        rounding = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, 0.0)
        allowed = rounding * np.abs(weight * of_emissions) + 3e-6
        assert (np.abs(live[0].grad[b][valid].double().numpy() - weight * of_emissions) <= allowed).all()
        assert not live[0].grad[b][~valid].any()
        of_left += weight * of_factors[0]
        of_right += weight * of_factors[1]
        if dynamic:
            got = torch.zeros_like(matrices[b])
            into = valid.nonzero()[1:, 0] - 1
            got[: len(into)] = matrices.grad[b, into]
            close(got[: len(into)], weight * of_matrices, dtype, scale=10)
            skipped = torch.ones(len(matrices[b]), dtype=torch.bool)
            skipped[into] = False
            assert not matrices.grad[b][skipped].any()
    # Sums over the batch and time of numbers of about 10.
    close(live[1].grad, of_left, dtype, scale=10)
    close(live[2].grad, of_right, dtype, scale=10)


@pytest.mark.parametrize("dynamic", [False, True])
def test_gradcheck_in_float64(kernels, dynamic):
    arguments = inputs(3, 4, 6, 2, 4, torch.float64, dynamic=dynamic)

    def both(emissions, left, right, matrices):
        found = log_partition_and_score(
            emissions, arguments.mask, left, right, 4, matrices, arguments.targets
        )
        return tuple(found)

    floats = [arguments.emissions, arguments.left, arguments.right, arguments.dynamic]
    live = [part.requires_grad_() if part is not None else None for part in floats]
    assert torch.autograd.gradcheck(both, live)


def test_the_loss_has_one_gradient_for_both_scores(kernels):
    arguments = inputs(3, 5, 60, 4, 8)
    live = arguments.emissions.clone().requires_grad_()
    *call, targets = arguments._replace(emissions=live)
    log_z, score = log_partition_and_score(*call, targets)
    (log_z - score).sum().backward()
    # Marginals less the targets: each position sums to zero, and only candidates are touched.
    np.testing.assert_allclose(live.grad.sum(-1).numpy(), 0, atol=1e-6)
    assert ((live.grad != 0).sum(-1) <= 8).all()
    chosen = live.grad.gather(2, targets[:, :, None])[:, :, 0]
    assert (chosen[arguments.mask] < 0).all()


def test_a_target_outside_the_beam_takes_the_last_place(kernels):
    emissions = torch.tensor([[[5.0, 4.0, 3.0, 0.0]]])
    mask, factors = torch.ones(1, 1, dtype=torch.bool), torch.zeros(4, 1)
    found = beam_crf_log_partition(emissions, mask, factors, factors, 2, None, torch.tensor([[3]]))
    assert float(found) == pytest.approx(np.log(np.exp(5) + np.exp(0)))
    inside = beam_crf_log_partition(emissions, mask, factors, factors, 2, None, torch.tensor([[1]]))
    assert float(inside) == pytest.approx(np.log(np.exp(5) + np.exp(4)))


def test_masked_positions_may_hold_anything(kernels):
    arguments = inputs(4, 6, 30, 3, 7)
    expected = run(arguments, True)
    emissions = arguments.emissions.masked_fill(~arguments.mask[:, :, None], torch.nan)
    targets = arguments.targets.masked_fill(~arguments.mask, -100)
    emissions = emissions.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(run(arguments._replace(emissions=emissions, targets=targets), True), expected)


@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_whose_gradients_are_zero_adds_nothing(kernels, dtype, with_targets):
    emissions, mask, left, right, beam, dynamic, targets = inputs(4, 6, 30, 3, 7, dtype)
    _, _, ids = torch.ops.petkit.beam_crf_log_partition(
        emissions, mask, left, right, dynamic, targets if with_targets else targets.new_empty(0), beam
    )
    weights, kept = torch.tensor([1.0, 0, -2, 0], dtype=left.dtype), [0, 2]
    spoiled, steps = emissions.clone(), dynamic.clone()
    spoiled[1], steps[1], spoiled[3, 0] = torch.nan, torch.nan, -torch.inf

    def backward(rows, emissions, dynamic):
        of_score, wanted = weights.new_empty(0), targets.new_empty(0)
        if with_targets:
            of_score, wanted = weights[rows] / 2, targets[rows]
        return torch.ops.petkit.beam_crf_log_partition_backward(
            weights[rows],
            of_score,
            emissions[rows],
            mask[rows],
            left,
            right,
            dynamic[rows],
            wanted,
            ids[rows],
        )

    found, expected = backward(slice(None), spoiled, steps), backward(kept, emissions, dynamic)
    for one, other in zip((found[0], found[3]), (expected[0], expected[3]), strict=True):
        assert not one[[1, 3]].any()
        torch.testing.assert_close(one[kept], other)
    torch.testing.assert_close(found[1:3], expected[1:3])


def test_impossible_entries(kernels):
    arguments = inputs(3, 6, 30, 3, 16)
    arguments.emissions[:, :, 5:] = -torch.inf
    live = arguments.emissions.clone().requires_grad_()
    found = run(arguments._replace(emissions=live))
    expected = []
    for emissions, _, factors in rows(arguments):
        chosen = [np.arange(5)] * len(emissions)
        expected.append(reference.recursed(emissions, chosen, *factors)[0])
    close(found, expected, torch.float32)
    found.sum().backward()
    assert torch.isfinite(live.grad).all()
    assert not live.grad[:, :, 5:].any()


def test_scores_far_apart(kernels):
    arguments = inputs(3, 8, 40, 3, 16)
    arguments.emissions[:, ::2] *= 60
    big = arguments._replace(left=arguments.left * 12, right=arguments.right * 12)
    expected = []
    for emissions, _, factors in rows(big):
        chosen = reference.candidates(emissions, 16)
        expected.append(reference.recursed(emissions, chosen, *factors)[0])
    # Transitions of hundreds are sums in float32.
    np.testing.assert_allclose(run(big).double().numpy(), expected, rtol=2e-6, atol=1e-4)


def test_a_long_sequence(kernels):
    arguments = inputs(1, 3000, 40, 4, 8)
    emissions, _, factors = next(iter(rows(arguments)))
    expected = reference.recursed(emissions, reference.candidates(emissions, 8), *factors)[0]
    np.testing.assert_allclose(float(run(arguments)), expected, rtol=3e-7)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_sum(kernels, shape):
    arguments = inputs(*shape, 6, 2, 4)
    live = arguments.left.clone().requires_grad_()
    found = run(arguments._replace(left=live), True)
    assert found.tolist() == [0.0] * shape[0]
    found.sum().backward()
    assert not live.grad.any()


def test_threads_and_neighbours_do_not_change_a_bit(kernels):
    arguments = inputs(11, 9, 300, 4, 20)

    def once():
        floats = (arguments.emissions, arguments.left, arguments.right, arguments.dynamic)
        live = [part.clone().requires_grad_() for part in floats]
        changed = dict(zip(("emissions", "left", "right", "dynamic"), live, strict=True))
        found = run(arguments._replace(**changed), True)
        found.sum().backward()
        return [found.detach(), *(part.grad for part in live)]

    with threads(3):
        together = once()
    with threads(1):
        alone = once()
    for one, two in zip(together, alone, strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # read by opcheck itself
@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_opcheck(kernels, dynamic, with_targets):
    arguments = inputs(3, 5, 9, 2, 4, dynamic=dynamic)
    none = torch.empty(0)
    floats = [arguments.left, arguments.right, arguments.dynamic if dynamic else none]
    ids = arguments.targets if with_targets else none.long()
    live = [part.clone().requires_grad_() for part in (arguments.emissions, *floats)]
    op = torch.ops.petkit.beam_crf_log_partition
    torch.library.opcheck(op.default, (live[0], arguments.mask, *live[1:], ids, 4))
    call = (arguments.emissions, arguments.mask, *floats, ids)
    _, score, candidates = op(*call, 4)
    grads = (torch.ones(3), torch.ones_like(score))
    backward = torch.ops.petkit.beam_crf_log_partition_backward.default
    torch.library.opcheck(backward, (*grads, *call, candidates))


def test_under_compile():
    arguments = inputs(2, 5, 20, 3, 6)
    compiled = torch.compile(beam_crf_log_partition, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), beam_crf_log_partition(*arguments))


GOOD = inputs(2, 3, 9, 2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"emissions": torch.zeros(2, 3, 9).long()},
            "emissions must be float32, float64, bfloat16 or float16",
        ),
        ({"emissions": torch.zeros(3, 9)}, r"must be \(batch, time, vocab\) with vocab >= 1, got \(3, 9\)"),
        ({"mask": torch.ones(2, 3)}, r"mask must be bool \(2, 3\)"),
        ({"mask": torch.zeros(2, 3).bool()}, r"mask\[0\] is set nowhere"),
        ({"left": torch.zeros(8, 2)}, r"left must be \(9, rank\) with rank >= 1, got \(8, 2\)"),
        ({"left": torch.zeros(9, 0)}, r"left must be \(9, rank\) with rank >= 1, got \(9, 0\)"),
        ({"right": torch.zeros(9, 3)}, r"right must be \(9, 2\) for emissions \(2, 3, 9\) and rank 2"),
        ({"dynamic": torch.zeros(2, 3, 2, 2)}, r"dynamic must be \(2, 2, 2, 2\) for emissions"),
        ({"beam": 0}, "beam must be an integer of at least 1, got 0"),
        ({"beam": 2.0}, "beam must be an integer of at least 1, got 2.0"),
        ({"targets": torch.zeros(2, 3)}, r"targets must be integers \(2, 3\), got torch.float32"),
        ({"targets": torch.zeros(2, 2).long()}, r"targets must be integers \(2, 3\)"),
        ({"targets": torch.full((2, 3), 9)}, "targets must lie between 0 and 8, got 9 at batch 0, time 0"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(InputError, match=message):
        run(GOOD._replace(**changes), True)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 40, 4100, 8999])
def test_emissions_that_are_not_numbers_are_named(kernels, bad, place):
    arguments = inputs(2, 3, 9000, 2, 4)
    arguments.mask[:] = True
    arguments.emissions[1, 2, place] = bad
    with pytest.raises(InputError, match=f"finite or -inf, got {bad} at batch 1, time 2"):
        run(arguments)


def test_factors_that_are_not_numbers_are_named(kernels):
    for name, place in (("left", (4, 1)), ("right", (8, 0)), ("dynamic", (1, 0, 1, 1))):
        for bad in (torch.nan, torch.inf):
            # Also where no candidate meets them.
            arguments = inputs(2, 3, 9, 2, 2)
            getattr(arguments, name)[place] = bad
            message = re.escape(f"{name} must be finite, got {bad} at {list(place)}")
            with pytest.raises(InputError, match=message):
                run(arguments)
            with pytest.raises(InputError, match=message):
                beam_crf_viterbi(*arguments[:-1])


def test_a_row_without_a_path_is_named(kernels):
    arguments = inputs(3, 3, 9, 2, 4)
    arguments.emissions[1, 0] = -torch.inf
    with pytest.raises(InputError, match="no path is possible at batch 1"):
        run(arguments)


def test_the_operator_itself_refuses_what_would_read_out_of_bounds():
    if not torch._C._dispatch_has_kernel_for_dispatch_key("petkit::beam_crf_log_partition", "CPU"):
        pytest.skip("the default has torch's own bounds checks")
    none, op = torch.empty(0), torch.ops.petkit.beam_crf_log_partition
    call = (GOOD.emissions, GOOD.mask, GOOD.left, GOOD.right, none)
    with pytest.raises(RuntimeError, match="targets must lie between 0 and 8, got 9"):
        op(*call, torch.full((2, 3), 9), 4)
    candidates = torch.full((2, 3, 4), 9, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="candidates must lie between 0 and 8, got 9"):
        torch.ops.petkit.beam_crf_log_partition_backward(torch.ones(2), none, *call, none.long(), candidates)


small = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 30), st.integers(1, 5))


@given(small, st.integers(1, 30), st.integers(0, 10))
def test_more_candidates_never_sum_to_less(shape, beam, seed):
    arguments = inputs(*shape, beam, seed=seed)
    wider = arguments._replace(beam=beam + 1)
    assert (run(wider) >= run(arguments) - 1e-4).all()


@given(small, st.integers(1, 30), st.integers(0, 10))
def test_the_targets_are_one_of_the_paths(shape, beam, seed):
    *call, targets = inputs(*shape, beam, seed=seed)
    log_z, score = log_partition_and_score(*call, targets)
    assert (score <= log_z + 1e-4).all()


def test_a_second_derivative_is_refused(kernels):
    arguments = inputs(2, 4, 9, 2, 4)
    live = arguments.emissions.clone().requires_grad_()
    log_z = run(arguments._replace(emissions=live)).sum()
    (gradient,) = torch.autograd.grad(log_z, live, create_graph=True)
    with pytest.raises(InputError, match="beam_crf_log_partition can be differentiated once"):
        (gradient**2).sum().backward()
