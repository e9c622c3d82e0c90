from __future__ import annotations

import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.ops import crf_log_partition, crf_marginals
from tests.ops.crf_cases import DTYPES, LARGE, SMALL, close, inputs, rows
from tests.reference import crf as reference


def check(arguments, dtype, expected):
    found = crf_marginals(*arguments)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for row, valid, values in zip(found, arguments.mask, rows(arguments), strict=True):
        close(row[valid], expected(values), dtype)
        assert not row[~valid].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SMALL)
def test_sums_over_every_path(kernels, shape, dtype):
    check(inputs(*shape, dtype), dtype, lambda row: reference.enumerated(*row)["marginals"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE)
def test_matches_the_recursion(kernels, shape, dtype):
    check(inputs(*shape, dtype), dtype, lambda row: reference.recursed(*row)["marginals"])


@pytest.mark.parametrize("shape", [(6, 5, 3), (3, 6, 2)])
def test_expected_transition_scores_give_the_entropy(kernels, shape):
    arguments = inputs(*shape)
    marginals, of_transitions, log_z = torch.ops.petkit.crf_marginals(*arguments)
    for b, row in enumerate(rows(arguments)):
        valid = arguments.mask[b]
        tags = marginals[b][valid].double().numpy()
        emissions, (_, start, end) = row
        expected_score = (
            (tags * emissions).sum() + tags[0] @ start + tags[-1] @ end + float(of_transitions[b])
        )
        exact = reference.enumerated(*row)
        np.testing.assert_allclose(float(log_z[b]), exact["log_z"], rtol=2e-6)
        np.testing.assert_allclose(float(log_z[b]) - expected_score, exact["entropy"], rtol=0, atol=1e-5)


def test_each_position_sums_to_one(kernels):
    arguments = inputs(7, 40, 33, scale=4.0)
    sums = crf_marginals(*arguments).sum(-1)
    np.testing.assert_allclose(sums.numpy(), arguments.mask.float().numpy(), atol=2e-5)


def test_is_the_gradient_of_the_log_partition(kernels):
    arguments = inputs(3, 20, 9)
    live = arguments.emissions.clone().requires_grad_()
    crf_log_partition(live, *arguments[1:]).sum().backward()
    assert torch.equal(crf_marginals(*arguments), live.grad)


def test_forbidden_tags_have_no_probability(kernels):
    arguments = inputs(3, 6, 20)
    arguments.emissions[:, :, 4] = -torch.inf
    arguments.transitions[2, :] = -torch.inf
    arguments.end[2] = -torch.inf
    found = crf_marginals(*arguments)
    assert torch.isfinite(found).all()
    assert not found[:, :, 4].any()
    assert not found[:, :, 2].any()


def test_an_empty_time_axis(kernels):
    assert crf_marginals(*inputs(3, 0, 2)).shape == (3, 0, 2)


def test_opcheck_and_compile(kernels):
    arguments = inputs(3, 5, 4)
    torch.library.opcheck(torch.ops.petkit.crf_marginals.default, arguments)
    compiled = torch.compile(crf_marginals, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), crf_marginals(*arguments))


def test_bad_rows_are_named(kernels):
    arguments = inputs(3, 5, 4)
    arguments.emissions[1, 0, 0] = torch.nan
    with pytest.raises(InputError, match="got nan at batch 1, time 0"):
        crf_marginals(*arguments)
