"""The gradient of beam_crf_log_partition; its values are in test_beam_crf_log_partition.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from petkit.ops.beam_crf_log_partition import log_partition_and_score
from tests.cuda_emulator.beam_support import SHAPES, any_layout, full_mask, run
from tests.cuda_emulator.support import from_bits
from tests.ops.beam_crf_cases import inputs, rows
from tests.ops.crf_cases import DTYPES, TOLERANCE
from tests.reference import beam as reference

# One rounding of the stored gradient of the emissions on top of the sums.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


class Gradients(NamedTuple):
    emissions: np.ndarray
    left: np.ndarray
    right: np.ndarray
    dynamic: np.ndarray


def upstream(arguments):
    """Gradients of log_z and of the scores."""
    batch, wide = len(arguments.emissions), arguments.left.dtype
    return torch.linspace(-1, 2, batch, dtype=wide), torch.linspace(1.5, 0.5, batch, dtype=wide)


def chosen_of(arguments, targets):
    """Candidates (batch, time, beam) by the reference; anything at masked positions."""
    batch, time, vocab = arguments.emissions.shape
    found = np.full((batch, time, min(arguments.beam, vocab)), -7, dtype=np.int32)
    for b, (emissions, wanted, _) in enumerate(rows(arguments)):
        chosen = reference.candidates(emissions, arguments.beam, wanted if targets else None)
        for t, ids in zip(arguments.mask[b].nonzero()[:, 0], chosen, strict=True):
            found[b, t] = ids
    return found


def differentiated(cuda_beam, arguments, targets=False, **options):
    more = (chosen_of(arguments, targets), *(part.numpy() for part in upstream(arguments)))
    found = run(cuda_beam, "beam_crf_log_partition_backward", arguments, *more, targets=targets, **options)
    return Gradients(from_bits(found[0], str(arguments.emissions.dtype)[6:]), *found[1:])


def add_score_gradient(total, b, arguments, weight):
    """The gradient of the score of the targets of row b."""
    positions = arguments.mask[b].nonzero()[:, 0].tolist()
    ids = arguments.targets[b].tolist()
    left, right = arguments.left.double().numpy(), arguments.right.double().numpy()
    for i, t in enumerate(positions):
        total.emissions[b, t, ids[t]] += weight
        if i == 0:
            continue
        from_, to = ids[positions[i - 1]], ids[t]
        matrix = np.eye(left.shape[1])
        if arguments.dynamic is not None:
            matrix = arguments.dynamic[b, t - 1].double().numpy()
            total.dynamic[b, t - 1] += weight * np.outer(left[from_], right[to])
        total.left[from_] += weight * matrix @ right[to]
        total.right[to] += weight * left[from_] @ matrix


def expected_gradients(arguments, targets):
    shapes = (part.shape for part in (arguments.emissions, arguments.left, arguments.right))
    batch, time, _ = arguments.emissions.shape
    rank = arguments.left.shape[1]
    total = Gradients(*(np.zeros(shape) for shape in shapes), np.zeros((batch, max(time - 1, 0), rank, rank)))
    of_log_z, of_score = (part.double().numpy() for part in upstream(arguments))
    for b, (emissions, wanted, factors) in enumerate(rows(arguments)):
        valid = arguments.mask[b].numpy()
        if not valid.any():
            continue
        chosen = reference.candidates(emissions, arguments.beam, wanted if targets else None)
        found = Gradients(*reference.gradients(emissions, chosen, *factors))
        total.emissions[b, valid] += of_log_z[b] * found.emissions
        total.left[:] += of_log_z[b] * found.left
        total.right[:] += of_log_z[b] * found.right
        total.dynamic[b, valid.nonzero()[0][1:] - 1] += of_log_z[b] * found.dynamic
        if targets:
            add_score_gradient(total, b, arguments, of_score[b])
    return total


def assert_near(found, expected, dtype):
    tolerance = TOLERANCE[dtype] * 2
    rounding = ROUNDING.get(dtype, 0.0) + tolerance
    np.testing.assert_allclose(found.emissions, expected.emissions, rtol=rounding, atol=tolerance)
    for name in ("left", "right", "dynamic"):
        exact = getattr(expected, name)
        # Sums over many transitions.
        bound = 10 * tolerance
        got = getattr(found, name)
        if got.size or name != "dynamic":
            np.testing.assert_allclose(got, exact, rtol=bound, atol=bound, err_msg=name)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_expectations(cuda_beam, shape, dtype, targets, dynamic):
    arguments = inputs(*shape, dtype, dynamic=dynamic)
    found = differentiated(cuda_beam, arguments, targets)
    assert_near(found, expected_gradients(arguments, targets), dtype)


# One step at a time, and two of the five.
@pytest.mark.parametrize("budget", [1, 3 * (8 * (8 + 4) + 2 * 9 * 5) * 4 * 2])
def test_segments(cuda_beam, budget):
    arguments = inputs(3, 5, 40, 4, 8)
    arguments.mask[2] = torch.tensor([1, 0, 0, 0, 1]).bool()
    found = differentiated(cuda_beam, arguments, True, budget=budget)
    assert_near(found, expected_gradients(arguments, True), torch.float32)


def test_masked_positions_may_hold_anything(cuda_beam):
    arguments = inputs(4, 6, 30, 3, 7)
    expected = differentiated(cuda_beam, arguments, True)
    given = arguments._replace(
        emissions=arguments.emissions.masked_fill(~arguments.mask[:, :, None], torch.nan),
        targets=arguments.targets.masked_fill(~arguments.mask, 2**60),
    )
    for one, two in zip(differentiated(cuda_beam, given, True), expected, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("targets", [False, True])
def test_rows_of_weight_zero_add_nothing(cuda_beam, targets):
    arguments = inputs(4, 6, 30, 3, 7)
    weights = np.array([1, 0, -2, 0], dtype=np.float32)

    def differentiate(given):
        more = (chosen_of(arguments, targets), weights, weights)
        return run(cuda_beam, "beam_crf_log_partition_backward", given, *more, targets=targets)

    emissions, dynamic = arguments.emissions.clone(), arguments.dynamic.clone()
    emissions[1], dynamic[1], emissions[3, 0] = torch.nan, torch.nan, -torch.inf
    spoiled = differentiate(arguments._replace(emissions=emissions, dynamic=dynamic))
    for one, other in zip(spoiled, differentiate(arguments), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_with_few_positions(cuda_beam):
    arguments = inputs(3, 5, 30, 4, 7)
    arguments.mask[1] = False
    arguments.mask[2] = torch.tensor([0, 0, 1, 0, 1]).bool()
    found = differentiated(cuda_beam, arguments, True)
    assert_near(found, expected_gradients(arguments, True), torch.float32)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_sum(cuda_beam, shape):
    found = differentiated(cuda_beam, inputs(*shape, 6, 2, 4), True)
    assert found.emissions.shape == (*shape, 6)
    assert not found.left.any()
    assert not found.right.any()


def test_impossible_entries(cuda_beam):
    arguments = inputs(3, 6, 30, 3, 16)
    arguments.emissions[:, :, 5:] = -torch.inf
    found = differentiated(cuda_beam, arguments)
    assert all(np.isfinite(part).all() for part in found)
    assert not found.emissions[:, :, 5:].any()
    few = arguments._replace(emissions=arguments.emissions[:, :, :5], beam=5)
    expected = expected_gradients(few._replace(left=arguments.left[:5], right=arguments.right[:5]), False)
    np.testing.assert_allclose(found.emissions[:, :, :5], expected.emissions, rtol=4e-6, atol=4e-6)
    np.testing.assert_allclose(found.left[:5], expected.left, rtol=4e-5, atol=4e-5)


def test_scores_far_apart(cuda_beam):
    arguments = inputs(3, 6, 40, 3, 16)
    arguments.emissions[:, ::2] *= 60
    big = arguments._replace(left=arguments.left * 12, right=arguments.right * 12)
    found, expected = differentiated(cuda_beam, big), expected_gradients(big, False)
    # Scores of hundreds are sums in float32, and marginals have their absolute error as a relative one.
    np.testing.assert_allclose(found.emissions, expected.emissions, rtol=0, atol=2e-4)


def test_a_long_sequence(cuda_beam):
    arguments = inputs(1, 120, 20, 2, 6)
    assert_near(differentiated(cuda_beam, arguments), expected_gradients(arguments, False), torch.float32)


def test_candidates_and_targets_outside_the_vocabulary_read_nothing(cuda_beam):
    arguments = full_mask(inputs(2, 3, 30, 2, 4))
    arguments.targets[:] = torch.tensor([[2**40, -1, 5], [30, 29, -(2**40)]])
    candidates = chosen_of(arguments, False)
    candidates[0, 1, 2], candidates[1, 0, 0] = 30, -(2**31)
    more = (candidates, *(part.numpy() for part in upstream(arguments)))
    # The emulator reports what is read or written outside the buffers.
    run(cuda_beam, "beam_crf_log_partition_backward", arguments, *more, targets=True)


def operator_arguments(arguments, targets):
    emissions, mask, left, right, _, dynamic, wanted = arguments
    matrices = left.new_empty(0) if dynamic is None else dynamic
    return emissions, mask, left, right, matrices, wanted if targets else wanted.new_empty(0)


def by_autograd(arguments, targets, of_log_z, of_score):
    """The gradients that the operators on the CPU give."""
    emissions, mask, left, right, beam, dynamic, wanted = arguments
    live = [part.detach().requires_grad_() for part in (emissions, left, right, dynamic) if part is not None]
    matrices = live[3] if dynamic is not None else None
    log_z, score = log_partition_and_score(
        live[0], mask, live[1], live[2], beam, matrices, wanted if targets else None
    )
    ((log_z * of_log_z).sum() + (score * of_score).sum()).backward()
    return [part.grad for part in live]


@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operator(call, dtype, targets):
    arguments = inputs(3, 5, 20, 3, 6, dtype)
    candidates = torch.from_numpy(chosen_of(arguments, targets))
    of_log_z, of_score = (torch.stack([part, part], -1)[:, 0] for part in upstream(arguments))
    grads = (of_log_z, of_score if targets else of_score[:0])
    for given in (arguments, any_layout(arguments), arguments._replace(dynamic=None)):
        expected = by_autograd(given, targets, *grads)
        found = call(
            "beam_crf_log_partition_backward", *grads, *operator_arguments(given, targets), candidates
        )
        # The stored gradient of the emissions may round the other way.
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=torch.finfo(dtype).eps * 4)
        bound = 20 * TOLERANCE[dtype]
        for one, two in zip(found[1 : len(expected)], expected[1:], strict=True):
            torch.testing.assert_close(one, two, atol=bound, rtol=bound)
        assert found[3].numel() == (0 if given.dynamic is None else given.dynamic.numel())


def test_the_operator_refuses(call):
    arguments = inputs(2, 3, 9, 2, 4)
    candidates = torch.from_numpy(chosen_of(arguments, True))
    more, (of_log_z, of_score) = operator_arguments(arguments, True), upstream(arguments)
    cases = [
        (
            (of_log_z[:1], of_score, *more, candidates),
            r"grad_log_z must have shape \(2\), got \(1\)",
        ),
        ((of_log_z, of_score[:0], *more, candidates), r"grad_score must have shape \(2\), got \(0\)"),
        ((of_log_z.double(), of_score, *more, candidates), "grad_log_z must be of the type of left"),
        ((of_log_z, of_score, *more, candidates.long()), "candidates must be int32"),
        ((of_log_z, of_score, *more, candidates[:, :2]), r"candidates must have shape \(2, 3, 4\)"),
    ]
    for given, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call("beam_crf_log_partition_backward", *given)
