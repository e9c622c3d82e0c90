from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda_emulator.crf_support import SHAPES, far_below, forbidding, run
from tests.ops.crf_cases import DTYPES, close, inputs, rows
from tests.reference import crf as reference


def check(cuda_crf, arguments, allowed=None):
    """`allowed` is the error of probabilities where it is not that of their rounding."""
    dtype, transitions = arguments.emissions.dtype, arguments.transitions.double().numpy()
    marginals, scores, log_z = (torch.from_numpy(part) for part in run(cuda_crf, "crf_marginals", arguments))
    assert marginals.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for b, row in enumerate(rows(arguments)):
        valid = arguments.mask[b]
        with np.errstate(invalid="ignore"):
            exact = {name: np.nan_to_num(value) for name, value in reference.recursed(*row).items()}
        bound = {"rtol": allowed, "atol": allowed} if allowed else {"rtol": 2e-6, "atol": 2e-6}
        np.testing.assert_allclose(marginals[b][valid].numpy(), exact["marginals"], **bound)
        assert not marginals[b][~valid].any()
        close(log_z[b], exact["log_z"], dtype)
        # A sum over the steps of the scores' size times probabilities.
        terms = exact["counts"] * np.where(transitions > -np.inf, transitions, 0)
        assert abs(float(scores[b]) - terms.sum()) <= (1 + np.abs(terms).sum()) * (allowed or 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_recursion(cuda_crf, shape, dtype):
    check(cuda_crf, inputs(*shape, dtype))


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2)])
def test_nothing(cuda_crf, shape):
    marginals, scores, log_z = run(cuda_crf, "crf_marginals", inputs(*shape))
    assert marginals.shape == shape
    assert scores.tolist() == log_z.tolist() == [0] * shape[0]


def test_a_row_without_positions(cuda_crf):
    arguments = inputs(2, 5, 4)
    arguments.mask[1] = False
    marginals, scores, log_z = run(cuda_crf, "crf_marginals", arguments)
    assert not marginals[1].any()
    assert scores[1] == log_z[1] == 0
    assert np.isfinite(marginals[0]).all()


def test_entropy_follows(cuda_crf):
    arguments = inputs(3, 5, 3)
    marginals, of_transitions, log_z = run(cuda_crf, "crf_marginals", arguments)
    for b, row in enumerate(rows(arguments)):
        tags = marginals[b][arguments.mask[b].numpy()].astype(np.float64)
        emissions, (_, start, end) = row
        score = (tags * emissions).sum() + tags[0] @ start + tags[-1] @ end + of_transitions[b]
        np.testing.assert_allclose(log_z[b] - score, reference.enumerated(*row)["entropy"], atol=1e-5)


@pytest.mark.parametrize("forbidden", [-torch.inf, -1e4])
def test_forbidden_transitions(cuda_crf, forbidden):
    check(cuda_crf, forbidding(forbidden), allowed=1e-5)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_where_likelihoods_change_by_hundreds(cuda_crf, dtype, allowed):
    # Scores of 700 have a last digit of 6e-5 in float32, which is what probabilities are known to.
    check(cuda_crf, far_below(dtype), allowed)


def test_each_position_sums_to_one(cuda_crf):
    arguments = inputs(2, 60, 33, scale=4.0)
    marginals, _, _ = run(cuda_crf, "crf_marginals", arguments)
    np.testing.assert_allclose(marginals.sum(-1), arguments.mask.float().numpy(), atol=5e-7)


def test_a_nan_shows_in_its_row_and_no_other(cuda_crf):
    arguments = inputs(2, 4, 3)
    arguments.mask[:] = True
    arguments.emissions[1, 2, 1] = torch.nan
    marginals, scores, log_z = run(cuda_crf, "crf_marginals", arguments)
    for part in (marginals, scores, log_z):
        assert np.isnan(part[1]).all()
        assert np.isfinite(part[0]).all()
