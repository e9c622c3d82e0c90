from __future__ import annotations

import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.ops import crf_kbest, crf_viterbi
from tests.ops.crf_cases import DTYPES, LARGE, SMALL, close, inputs, rows
from tests.reference import crf as reference


@pytest.mark.parametrize("k", [1, 2, 7, 40])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SMALL)
def test_lists_the_best_of_all_paths(kernels, shape, dtype, k):
    arguments = inputs(*shape, dtype)
    paths, scores = crf_kbest(*arguments, k)
    assert paths.shape == (shape[0], k, shape[1])
    assert paths.dtype == torch.int64
    for b, row in enumerate(rows(arguments)):
        valid, best = arguments.mask[b], reference.enumerated(*row)["best"]
        count = min(k, len(best))
        close(scores[b, :count], best[:count], dtype)
        found = [tuple(path[valid].tolist()) for path in paths[b, :count]]
        assert len(set(found)) == count
        for path, score in zip(found, scores[b], strict=False):
            close(score, reference.score(path, *row), dtype)
        assert (paths[b][:, ~valid] == -1).all()
        assert (paths[b, count:] == -1).all()
        assert (scores[b, count:] == -torch.inf).all()


@pytest.mark.parametrize("shape", LARGE)
def test_the_first_is_the_best_and_all_differ(kernels, shape):
    arguments = inputs(*shape)
    paths, scores = crf_kbest(*arguments, 6)
    close(scores[:, 0], crf_viterbi(*arguments)[1].double().numpy(), torch.float32)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    for b, row in enumerate(rows(arguments)):
        valid = arguments.mask[b]
        found = [tuple(path[valid].tolist()) for path in paths[b]]
        assert len(set(found)) == 6
        for path, score in zip(found, scores[b], strict=True):
            close(score, reference.score(path, *row), torch.float32)


def test_forbidden_paths_are_not_listed(kernels):
    arguments = inputs(1, 3, 2)
    arguments.transitions[0, 1] = -torch.inf
    paths, scores = crf_kbest(*arguments, 6)
    exact = np.sort([score for score in reference.all_paths(*next(rows(arguments)))[1] if np.isfinite(score)])
    assert len(exact) == 4
    close(scores[0, :4], exact[::-1], torch.float32)
    assert (paths[0, 4:] == -1).all()
    assert (scores[0, 4:] == -torch.inf).all()


def test_an_empty_time_axis_has_one_empty_path(kernels):
    paths, scores = crf_kbest(*inputs(2, 0, 2), 2)
    assert paths.shape == (2, 2, 0)
    assert scores.tolist() == [[0, -torch.inf]] * 2


def test_opcheck_and_compile(kernels):
    arguments = (*inputs(3, 5, 4), 3)
    torch.library.opcheck(torch.ops.petkit.crf_kbest.default, arguments)
    compiled = torch.compile(crf_kbest, backend="eager", fullgraph=True)
    for one, two in zip(compiled(*arguments), crf_kbest(*arguments), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_refuses_a_count_that_is_none(k):
    with pytest.raises(InputError, match=f"k must be an integer of at least 1, got {k}"):
        crf_kbest(*inputs(1, 2, 3), k)


def test_bad_rows_are_named(kernels):
    arguments = inputs(3, 5, 4)
    arguments.emissions[1, 0, 0] = torch.nan
    with pytest.raises(InputError, match="got nan at batch 1, time 0"):
        crf_kbest(*arguments, 2)
