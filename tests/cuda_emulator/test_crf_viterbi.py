from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda_emulator.crf_support import SHAPES, far_below, forbidding, run
from tests.ops.crf_cases import DTYPES, close, inputs, long_case, rows
from tests.reference import crf as reference


def best(cuda_crf, arguments):
    return (torch.from_numpy(part) for part in run(cuda_crf, "crf_viterbi", arguments))


def check(cuda_crf, arguments):
    dtype = arguments.emissions.dtype
    paths, scores = best(cuda_crf, arguments)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with np.errstate(invalid="ignore"):
        close(scores, [float(reference.recursed(*row)["best"]) for row in rows(arguments)], dtype)
    for path, valid, row, score in zip(paths, arguments.mask, rows(arguments), scores, strict=True):
        assert (path[~valid] == -1).all()
        # The path has the score that is claimed for it.
        close(score, reference.score(tuple(path[valid].tolist()), *row), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_recursion(cuda_crf, shape, dtype):
    check(cuda_crf, inputs(*shape, dtype))


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2)])
def test_nothing_to_find(cuda_crf, shape):
    paths, scores = best(cuda_crf, inputs(*shape))
    assert paths.shape == shape[:2]
    assert scores.tolist() == [0] * shape[0]


def test_rows_with_few_positions(cuda_crf):
    arguments = inputs(3, 5, 4)
    arguments.mask[1] = False
    arguments.mask[2] = torch.tensor([0, 0, 1, 0, 1]).bool()
    arguments.emissions[~arguments.mask] = torch.nan
    paths, scores = best(cuda_crf, arguments)
    assert (paths[1] == -1).all()
    assert scores[1] == 0
    kept = list(rows(arguments))
    close(scores[[0, 2]], [reference.recursed(*kept[row])["best"] for row in (0, 2)], torch.float32)


@pytest.mark.parametrize("tags", [40, 300])
def test_of_equal_paths_the_lower_tags(cuda_crf, tags):
    arguments = inputs(2, 3, tags)
    for part in (arguments.emissions, *arguments[2:]):
        part[:] = 0
    paths, scores = best(cuda_crf, arguments)
    assert torch.equal(paths, torch.where(arguments.mask, 0, -1))
    assert scores.tolist() == [0, 0]


@pytest.mark.parametrize("forbidden", [-torch.inf, -1e4])
def test_forbidden_transitions(cuda_crf, forbidden):
    check(cuda_crf, forbidding(forbidden))


def test_a_path_far_below_all_others_is_not_lost(cuda_crf):
    check(cuda_crf, far_below())


def test_a_row_without_a_path(cuda_crf):
    arguments = inputs(2, 4, 3, gaps=False)
    arguments.mask[:] = True
    arguments.emissions[1, 2] = -torch.inf
    paths, scores = best(cuda_crf, arguments)
    assert ((paths >= 0) & (paths < 3)).all()
    assert scores[1] == -torch.inf


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["emissions", "transitions", "start", "end"])
def test_a_score_of_nan_shows_what_the_best_path_avoids(cuda_crf, name, bad):
    arguments = inputs(2, 3, 40, gaps=False)
    arguments.mask[:] = True
    arguments.transitions[:, 7] = -torch.inf
    arguments.start[7] = -torch.inf
    _, expected = best(cuda_crf, arguments)
    place = {"emissions": (1, 2, 7), "transitions": (7, 39)}.get(name, (7,))
    getattr(arguments, name)[place] = bad
    paths, scores = best(cuda_crf, arguments)
    assert torch.isnan(scores[1])
    assert torch.isnan(scores[0]) if name != "emissions" else scores[0] == expected[0]
    assert ((paths >= 0) & (paths < 40)).all()


def test_a_long_sequence(cuda_crf):
    arguments, expected = long_case(5000)
    _, scores = best(cuda_crf, arguments)
    np.testing.assert_allclose(float(scores), expected["best"], rtol=2e-7)


def test_rows_of_tags_that_no_shared_memory_holds(cuda_crf):
    arguments = inputs(1, 2, 2600, torch.float64)
    emissions, (transitions, start, end) = next(rows(arguments))
    paths = (emissions[0] + start)[:, None] + transitions + emissions[1] + end
    found, scores = best(cuda_crf, arguments)
    assert tuple(found[0].tolist()) == np.unravel_index(paths.argmax(), paths.shape)
    close(scores, [paths.max()], torch.float64)
