from __future__ import annotations

import numpy as np
import pytest
import torch

from petkit.ops.beam_crf_log_partition import log_partition_and_score
from tests.cuda_emulator.beam_support import SHAPES, any_layout, full_mask, run
from tests.ops.beam_crf_cases import inputs, rows
from tests.ops.crf_cases import DTYPES, close
from tests.reference import beam as reference


def summed(cuda_beam, arguments, **options):
    """log_z, the score of the targets, and the candidates."""
    return tuple(
        torch.from_numpy(part) for part in run(cuda_beam, "beam_crf_log_partition", arguments, **options)
    )


def expected_sums(arguments, targets):
    """log_z, and the score of the targets."""
    sums, scores = [], []
    for emissions, wanted, factors in rows(arguments):
        chosen = reference.candidates(emissions, arguments.beam, wanted if targets else None)
        sums.append(reference.recursed(emissions, chosen, *factors)[0])
        scores.append(reference.score(wanted, emissions, *factors))
    return sums, scores


def check(cuda_beam, arguments, targets, **options):
    dtype = arguments.emissions.dtype
    log_z, score, candidates = summed(cuda_beam, arguments, targets=targets, **options)
    assert log_z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    sums, scores = expected_sums(arguments, targets)
    close(log_z, sums, dtype, scale=2)
    close(score, scores if targets else [], dtype, scale=2)
    assert (candidates[~arguments.mask] == -1).all()
    for b, (emissions, wanted, _) in enumerate(rows(arguments)):
        chosen = reference.candidates(emissions, arguments.beam, wanted if targets else None)
        np.testing.assert_array_equal(candidates[b][arguments.mask[b]].numpy(), np.stack(chosen))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_recursion_over_the_candidates(cuda_beam, shape, dtype, targets, dynamic):
    check(cuda_beam, inputs(*shape, dtype, dynamic=dynamic), targets)


# One step at a time, and two of the five.
@pytest.mark.parametrize("budget", [1, 3 * 8 * (8 + 4) * 4 * 2])
def test_segments(cuda_beam, budget):
    arguments = inputs(3, 5, 40, 4, 8)
    expected = summed(cuda_beam, arguments, targets=True)
    for one, two in zip(summed(cuda_beam, arguments, targets=True, budget=budget), expected, strict=True):
        assert torch.equal(one, two)


def test_masked_positions_may_hold_anything(cuda_beam):
    arguments = inputs(4, 6, 30, 3, 7)
    expected = summed(cuda_beam, arguments, targets=True)
    for garbage in (-(2**60), 2**60):
        given = arguments._replace(
            emissions=arguments.emissions.masked_fill(~arguments.mask[:, :, None], torch.nan),
            targets=arguments.targets.masked_fill(~arguments.mask, garbage),
        )
        for one, two in zip(summed(cuda_beam, given, targets=True), expected, strict=True):
            assert torch.equal(one, two)


def test_rows_with_few_positions(cuda_beam):
    arguments = inputs(3, 5, 30, 4, 7)
    arguments.mask[1] = False
    arguments.mask[2] = torch.tensor([0, 0, 1, 0, 1]).bool()
    log_z, score, _ = summed(cuda_beam, arguments, targets=True)
    assert (log_z[1], score[1]) == (0, 0)
    kept = [0, 2]
    sums, scores = expected_sums(arguments._replace(**of_rows(arguments, kept)), True)
    close(log_z[kept], sums, torch.float32, scale=2)
    close(score[kept], scores, torch.float32, scale=2)


def of_rows(arguments, kept):
    names = ("emissions", "mask", "dynamic", "targets")
    return {name: getattr(arguments, name)[kept] for name in names}


def test_impossible_entries(cuda_beam):
    arguments = inputs(3, 6, 30, 3, 16)
    arguments.emissions[:, :, 5:] = -torch.inf
    with np.errstate(invalid="ignore"):
        expected = [
            reference.recursed(emissions, [np.arange(5)] * len(emissions), *factors)[0]
            for emissions, _, factors in rows(arguments)
        ]
    close(summed(cuda_beam, arguments)[0], expected, torch.float32)


def test_scores_far_apart(cuda_beam):
    arguments = inputs(3, 6, 40, 3, 16)
    arguments.emissions[:, ::2] *= 60
    big = arguments._replace(left=arguments.left * 12, right=arguments.right * 12)
    expected = expected_sums(big, False)[0]
    # Transitions of hundreds are sums in float32.
    np.testing.assert_allclose(summed(cuda_beam, big)[0].double().numpy(), expected, rtol=2e-6, atol=1e-4)


def test_a_long_sequence(cuda_beam):
    arguments = inputs(1, 220, 20, 2, 6)
    expected = expected_sums(arguments, False)[0]
    np.testing.assert_allclose(summed(cuda_beam, arguments)[0].numpy(), expected, rtol=3e-7)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_sum(cuda_beam, shape):
    log_z, score, candidates = summed(cuda_beam, inputs(*shape, 6, 2, 4), targets=True)
    assert log_z.tolist() == score.tolist() == [0.0] * shape[0]
    assert candidates.shape == (*shape, 4)


def test_a_row_without_a_path(cuda_beam):
    arguments = full_mask(inputs(2, 4, 9, 3, 5))
    arguments.emissions[1, 2] = -torch.inf
    log_z, *_ = summed(cuda_beam, arguments)
    assert log_z[1] == -torch.inf
    assert torch.isfinite(log_z[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 1500])
def test_what_is_no_number_spoils_its_row_and_no_other(cuda_beam, place, bad):
    # With one candidate the target drives out what is no number.
    arguments = full_mask(inputs(2, 3, 2000, 2, 1))
    expected = summed(cuda_beam, arguments, targets=True)
    arguments.emissions[1, 2, place] = bad
    for one, two in zip(summed(cuda_beam, arguments, targets=True)[:2], expected[:2], strict=True):
        assert torch.isnan(one[1])
        assert one[0] == two[0]


@pytest.mark.parametrize("name", ["left", "right", "dynamic"])
def test_factors_that_are_not_numbers_show(cuda_beam, name):
    arguments = full_mask(inputs(2, 3, 9, 2, 9))
    getattr(arguments, name)[1] = torch.nan
    log_z = summed(cuda_beam, arguments)[0]
    assert torch.isnan(log_z[1])
    assert torch.isnan(log_z[0]) == (name != "dynamic")


@pytest.mark.parametrize("target", [-1, 30, 2**40])
def test_a_target_outside_the_vocabulary_shows_in_its_score(cuda_beam, target):
    arguments = full_mask(inputs(2, 3, 30, 2, 4))
    arguments.targets[1, 1] = target
    log_z, score, candidates = summed(cuda_beam, arguments, targets=True)
    assert torch.isnan(score).tolist() == [False, True]
    assert torch.isfinite(log_z).all()
    assert ((candidates >= 0) & (candidates < 30)).all()


@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operator(call, dtype, with_targets):
    arguments = inputs(3, 5, 20, 3, 6, dtype)
    for given in (arguments, any_layout(arguments), arguments._replace(dynamic=None, beam=50)):
        emissions, mask, left, right, beam, dynamic, targets = given
        expected = log_partition_and_score(*given[:-1], targets if with_targets else None)
        ids = targets if with_targets else targets.new_empty(0)
        matrices = left.new_empty(0) if dynamic is None else dynamic
        *found, candidates = call("beam_crf_log_partition", emissions, mask, left, right, matrices, ids, beam)
        for one, two in zip(found, expected, strict=True):
            assert one.shape == two.shape
            close(one, two.double().numpy(), dtype, scale=4)
        assert candidates.shape == (3, 5, min(beam, 20))


def test_the_operator_refuses(call):
    emissions, mask, left, right, beam, dynamic, targets = inputs(2, 3, 9, 2, 4)
    given = (emissions, mask, left, right, dynamic)
    with pytest.raises(RuntimeError, match=r"targets must have shape \(2, 3\), got \(2, 2\)"):
        call("beam_crf_log_partition", *given, targets[:, :2], beam)
    with pytest.raises(RuntimeError, match="targets must be int64"):
        call("beam_crf_log_partition", *given, targets.int(), beam)
