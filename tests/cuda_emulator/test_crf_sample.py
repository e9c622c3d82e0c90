from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda_emulator.crf_support import SHAPES, forbidding, run
from tests.ops.crf_cases import DTYPES, close, inputs, rows
from tests.reference import crf as reference


def uniforms(samples, shape, seed=0):
    return np.random.default_rng(seed).random((samples, *shape[:2]))


def forward_variables(emissions, parameters):
    transitions, start, _ = parameters
    variables = [emissions[0] + start]
    for scores in emissions[1:]:
        variables.append(reference.logsumexp(variables[-1][:, None] + transitions, axis=0) + scores)
    return variables


def check_path(path, drawn, row):
    """Every tag is the one whose share of the unit interval, given the next tag, holds the number drawn."""
    emissions, (transitions, _, end) = row
    variables = forward_variables(*row)
    for i in range(len(emissions) - 1, -1, -1):
        logits = variables[i] + (end if i + 1 == len(emissions) else transitions[:, path[i + 1]])
        bounds = np.concatenate([[0], np.exp(logits - reference.logsumexp(logits)).cumsum()])
        assert bounds[path[i] + 1] > bounds[path[i]]
        # Probabilities are known to some last digits of float32.
        assert bounds[path[i]] - 1e-5 <= drawn[i] <= bounds[path[i] + 1] + 1e-5


def check(cuda_crf, arguments, drawn):
    samples, log_z = run(cuda_crf, "crf_sample", arguments, drawn)
    assert samples.shape == drawn.shape
    for b, row in enumerate(rows(arguments)):
        valid = arguments.mask[b].numpy()
        for path, numbers in zip(samples[:, b], drawn[:, b], strict=True):
            check_path(path[valid], numbers[valid], row)
            assert (path[~valid] == -1).all()
    expected = [
        float(reference.logsumexp(forward_variables(*row)[-1] + row[1][2])) for row in rows(arguments)
    ]
    close(torch.from_numpy(log_z), expected, arguments.emissions.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_draws_what_the_numbers_say(cuda_crf, shape, dtype):
    check(cuda_crf, inputs(*shape, dtype), uniforms(5, shape))


def test_paths_come_as_often_as_they_are_likely(cuda_crf):
    arguments, count = inputs(2, 3, 2), 700
    samples, _ = run(cuda_crf, "crf_sample", arguments, uniforms(count, (2, 3)))
    for b, row in enumerate(rows(arguments)):
        paths, scores = reference.all_paths(*row)
        likely = np.exp(scores - reference.enumerated(*row)["log_z"])
        tags = samples[:, b][:, arguments.mask[b].numpy()]
        frequency = np.bincount(tags @ 2 ** np.arange(tags.shape[1])[::-1], minlength=len(paths)) / count
        # Five standard deviations of each frequency.
        assert (np.abs(frequency - likely) <= 5 * np.sqrt(likely * (1 - likely) / count) + 1 / count).all()


@pytest.mark.parametrize(("shape", "count"), [((0, 3, 2), 4), ((3, 0, 2), 4), ((2, 3, 2), 0)])
def test_nothing_to_draw(cuda_crf, shape, count):
    samples, log_z = run(cuda_crf, "crf_sample", inputs(*shape), uniforms(count, shape))
    assert samples.shape == (count, *shape[:2])
    assert np.isfinite(log_z).all()


def test_a_row_without_positions(cuda_crf):
    arguments = inputs(2, 5, 4)
    arguments.mask[1] = False
    samples, log_z = run(cuda_crf, "crf_sample", arguments, uniforms(3, (2, 5)))
    assert (samples[:, 1] == -1).all()
    assert (samples[:, 0] >= 0).all()
    assert log_z[1] == 0


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("tags", [5, 70])
def test_the_ends_of_the_unit_interval_are_possible_tags(cuda_crf, uniform, tags):
    arguments = inputs(2, 6, tags)
    arguments.transitions[:, tags - 1] = -torch.inf
    arguments.start[0] = -torch.inf
    arguments.emissions[:, :, 34:60] = -torch.inf
    samples, _ = run(cuda_crf, "crf_sample", arguments, np.full((1, 2, 6), uniform))
    for b, row in enumerate(rows(arguments)):
        assert np.isfinite(reference.score(tuple(samples[0, b][arguments.mask[b].numpy()]), *row))


@pytest.mark.parametrize("forbidden", [-torch.inf, -1e4])
def test_forbidden_transitions(cuda_crf, forbidden):
    arguments = forbidding(forbidden)
    drawn = uniforms(40, arguments.emissions.shape)
    samples, _ = run(cuda_crf, "crf_sample", arguments, drawn)
    for b, row in enumerate(rows(arguments)):
        for path in samples[:, b][:, arguments.mask[b].numpy()]:
            assert reference.score(tuple(path), *row) > -1e3


def test_a_nan_shows_in_the_sum_and_the_tags_stay_tags(cuda_crf):
    arguments = inputs(2, 4, 40)
    arguments.mask[:] = True
    arguments.emissions[1, 2, 1] = torch.nan
    samples, log_z = run(cuda_crf, "crf_sample", arguments, uniforms(3, (2, 4)))
    assert np.isnan(log_z[1])
    assert np.isfinite(log_z[0])
    assert ((samples >= 0) & (samples < 40)).all()
