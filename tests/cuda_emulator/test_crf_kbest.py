from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda_emulator.crf_support import SHAPES, far_below, forbidding, run
from tests.ops.crf_cases import DTYPES, SMALL, close, inputs, rows
from tests.reference import crf as reference


def listed(cuda_crf, arguments, k, pointer_bytes=1 << 28):
    return (torch.from_numpy(part) for part in run(cuda_crf, "crf_kbest", arguments, k, pointer_bytes))


def check_list(paths, scores, valid, row, dtype, count):
    """The first `count` paths differ and have their scores, which fall; behind them there is nothing."""
    found = [tuple(path[valid].tolist()) for path in paths[:count]]
    assert len(set(found)) == count
    for path, score in zip(found, scores, strict=False):
        close(score, reference.score(path, *row), dtype)
    assert (paths[:, ~valid] == -1).all()
    assert (paths[count:] == -1).all()
    assert (scores[count:] == -torch.inf).all()
    # Prefixes are compared relative to the best of their position, the scores are sums in float64.
    rounding = 1e-5 if dtype != torch.float64 else 1e-12
    assert (scores[: count - 1] >= scores[1:count] - rounding).all()


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SMALL)
def test_lists_the_best_of_all_paths(cuda_crf, shape, dtype, k):
    arguments = inputs(*shape, dtype)
    paths, scores = listed(cuda_crf, arguments, k)
    for b, row in enumerate(rows(arguments)):
        best = reference.enumerated(*row)["best"]
        count = min(k, len(best))
        close(scores[b, :count], best[:count], dtype)
        check_list(paths[b], scores[b], arguments.mask[b], row, dtype, count)


@pytest.mark.parametrize("shape", SHAPES[3:])
def test_the_first_is_the_best_and_all_differ(cuda_crf, shape):
    arguments = inputs(*shape)
    paths, scores = listed(cuda_crf, arguments, 4)
    for b, row in enumerate(rows(arguments)):
        close(scores[b, 0], reference.recursed(*row)["best"], torch.float32)
        check_list(paths[b], scores[b], arguments.mask[b], row, torch.float32, 4)


def test_of_equal_paths_the_lower_tags_from_the_end(cuda_crf):
    arguments = inputs(1, 2, 3)
    for part in (arguments.emissions, *arguments[2:]):
        part[:] = 0
    paths, scores = listed(cuda_crf, arguments, 5)
    assert paths[0].tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1]]
    assert scores.tolist() == [[0] * 5]


def test_forbidden_paths_are_not_listed(cuda_crf):
    arguments = inputs(1, 3, 2)
    arguments.transitions[0, 1] = -torch.inf
    paths, scores = listed(cuda_crf, arguments, 6)
    row = next(rows(arguments))
    exact = np.sort([score for score in reference.all_paths(*row)[1] if np.isfinite(score)])
    close(scores[0, :4], exact[::-1], torch.float32)
    check_list(paths[0], scores[0], arguments.mask[0], row, torch.float32, 4)


@pytest.mark.parametrize("arguments", [forbidding(-torch.inf), forbidding(-1e4), far_below()])
def test_forbidden_and_unlikely_transitions(cuda_crf, arguments):
    paths, scores = listed(cuda_crf, arguments, 3)
    for b, row in enumerate(rows(arguments)):
        with np.errstate(invalid="ignore"):
            close(scores[b, 0], reference.recursed(*row)["best"], torch.float32)
        best = tuple(paths[b, 0][arguments.mask[b]].tolist())
        close(scores[b, 0], reference.score(best, *row), torch.float32)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2)])
def test_an_empty_time_axis_has_one_empty_path(cuda_crf, shape):
    paths, scores = listed(cuda_crf, inputs(*shape), 2)
    assert paths.shape == (shape[0], 2, shape[1])
    assert scores.tolist() == [[0, -torch.inf]] * shape[0]


def test_a_row_without_positions_has_one_empty_path(cuda_crf):
    arguments = inputs(2, 4, 3)
    arguments.mask[1] = False
    paths, scores = listed(cuda_crf, arguments, 3)
    assert (paths[1] == -1).all()
    assert scores[1].tolist() == [0, -torch.inf, -torch.inf]
    assert torch.isfinite(scores[0]).all()


def test_rows_take_turns_where_memory_is_short(cuda_crf):
    arguments = inputs(5, 4, 3)
    together = list(listed(cuda_crf, arguments, 3))
    two_rows = 2 * 4 * 3 * 3 * 4
    for pointer_bytes in (0, two_rows):
        for one, two in zip(listed(cuda_crf, arguments, 3, pointer_bytes), together, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["emissions", "transitions", "start", "end"])
def test_a_score_of_nan_shows_what_is_no_number(cuda_crf, name, bad):
    arguments = inputs(2, 3, 4)
    arguments.mask[:] = True
    arguments.transitions[:, 2] = -torch.inf
    arguments.start[2] = -torch.inf
    _, expected = listed(cuda_crf, arguments, 3)
    place = {"emissions": (1, 2, 2), "transitions": (2, 3)}.get(name, (2,))
    getattr(arguments, name)[place] = bad
    paths, scores = listed(cuda_crf, arguments, 3)
    assert torch.isnan(scores[1, 0])
    assert ((paths >= -1) & (paths < 4)).all()
    if name == "emissions":
        assert torch.equal(scores[0], expected[0])
        assert scores[1, 1:].tolist() == [-torch.inf] * 2
