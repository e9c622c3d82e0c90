from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import crf_log_partition, crf_viterbi
from tests.ops.crf_cases import DTYPES, LARGE, SMALL, close, inputs, long_case, rows
from tests.reference import crf as reference


def check(arguments, dtype, best):
    paths, scores = crf_viterbi(*arguments)
    assert paths.dtype == torch.int64
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(scores, [float(best(row)) for row in rows(arguments)], dtype)
    for path, valid, row, score in zip(paths, arguments.mask, rows(arguments), scores, strict=True):
        assert (path[~valid] == -1).all()
        # The path has the score that is claimed for it.
        close(score, reference.score(tuple(path[valid].tolist()), *row), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SMALL)
def test_finds_the_best_of_all_paths(kernels, shape, dtype):
    check(inputs(*shape, dtype), dtype, lambda row: reference.enumerated(*row)["best"][0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE)
def test_matches_the_recursion(kernels, shape, dtype):
    check(inputs(*shape, dtype), dtype, lambda row: reference.recursed(*row)["best"])


def test_an_empty_time_axis(kernels):
    paths, scores = crf_viterbi(*inputs(3, 0, 2))
    assert paths.shape == (3, 0)
    assert scores.tolist() == [0, 0, 0]


def test_of_equal_paths_the_lower_tags(kernels):
    _, mask, *_ = inputs(2, 4, 40, gaps=False)
    zeros = torch.zeros(40)
    paths, scores = crf_viterbi(torch.zeros(2, 4, 40), mask, torch.zeros(40, 40), zeros, zeros)
    assert torch.equal(paths, torch.where(mask, 0, -1))
    assert scores.tolist() == [0, 0]


@pytest.mark.parametrize("forbidden", [-torch.inf, -1e4])
def test_forbidden_transitions(kernels, forbidden):
    arguments = inputs(4, 9, 20)
    arguments.transitions[torch.rand((20, 20), generator=torch.Generator().manual_seed(1)) < 0.7] = forbidden
    arguments.start[5:] = forbidden
    check(arguments, torch.float32, lambda row: reference.recursed(*row)["best"])


def test_a_long_sequence(kernels):
    arguments, expected = long_case(5000 if kernels == "torch" else 100_000)
    _, scores = crf_viterbi(*arguments)
    np.testing.assert_allclose(float(scores), expected["best"], rtol=2e-7)


def test_more_tags_than_a_byte_counts(kernels):
    check(inputs(2, 6, 1024), torch.float32, lambda row: reference.recursed(*row)["best"])


def test_any_layout_and_masked_values(kernels):
    arguments = inputs(4, 6, 5)
    expected = crf_viterbi(*arguments)
    emissions = arguments.emissions.masked_fill(~arguments.mask[:, :, None], torch.nan)
    emissions = emissions.transpose(0, 1).contiguous().transpose(0, 1)
    for one, two in zip(crf_viterbi(emissions, *arguments[1:]), expected, strict=True):
        assert torch.equal(one, two)


def test_opcheck_and_compile(kernels):
    arguments = inputs(3, 5, 4)
    torch.library.opcheck(torch.ops.petkit.crf_viterbi.default, arguments)
    compiled = torch.compile(crf_viterbi, backend="eager", fullgraph=True)
    for one, two in zip(compiled(*arguments), crf_viterbi(*arguments), strict=True):
        assert torch.equal(one, two)


def test_bad_rows_are_named(kernels):
    arguments = inputs(3, 5, 4)
    arguments.mask[:] = True
    arguments.emissions[2, 3] = -torch.inf
    with pytest.raises(InputError, match="no path is possible at batch 2"):
        crf_viterbi(*arguments)
    arguments.emissions[1, 4, 0] = torch.nan
    with pytest.raises(InputError, match="got nan at batch 1, time 4"):
        crf_viterbi(*arguments)
    with pytest.raises(InputError, match=r"mask\[0\] is set nowhere"):
        crf_viterbi(arguments.emissions, torch.zeros_like(arguments.mask), *arguments[2:])


@given(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 18)), st.integers(0, 20))
def test_no_path_exceeds_the_log_partition(shape, seed):
    arguments = inputs(*shape, seed=seed)
    _, scores = crf_viterbi(*arguments)
    log_z = crf_log_partition(*arguments)
    assert (scores <= log_z + 1e-4).all()
    number_of_paths = arguments.mask.sum(1) * np.log(shape[2])
    assert (log_z <= scores + number_of_paths + 1e-4).all()
