from __future__ import annotations

import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.ops import crf_sample
from tests.ops.crf_cases import DTYPES, inputs, rows
from tests.reference import crf as reference
from tests.threads import threads


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_paths_come_as_often_as_they_are_likely(kernels, dtype):
    arguments = inputs(3, 4, 3, dtype)
    count = 20_000
    samples = crf_sample(*arguments, count, seeded())
    assert samples.shape == (count, 3, 4)
    for b, row in enumerate(rows(arguments)):
        valid = arguments.mask[b]
        paths, scores = reference.all_paths(*row)
        likely = np.exp(scores - reference.enumerated(*row)["log_z"])
        tags = samples[:, b][:, valid].numpy()
        codes = (tags * 3 ** np.arange(tags.shape[1])[::-1]).sum(1)
        frequency = np.bincount(codes, minlength=len(paths)) / count
        # Five standard deviations of each frequency.
        allowed = 5 * np.sqrt(likely * (1 - likely) / count) + 1 / count
        assert (np.abs(frequency - likely) <= allowed).all()
        assert (samples[:, b][:, ~valid] == -1).all()


def test_long_rows_have_their_marginals(kernels):
    arguments = inputs(2, 30, 20)
    samples = crf_sample(*arguments, 4000, seeded())
    for b, row in enumerate(rows(arguments)):
        marginals = reference.recursed(*row)["marginals"]
        tags = samples[:, b][:, arguments.mask[b]]
        frequency = torch.nn.functional.one_hot(tags, 20).double().mean(0).numpy()
        assert np.abs(frequency - marginals).max() < 5 * 0.5 / np.sqrt(4000)


def test_forbidden_tags_are_never_drawn(kernels):
    arguments = inputs(2, 12, 20)
    arguments.transitions[:, 3] = -torch.inf
    arguments.start[3] = -torch.inf
    arguments.emissions[:, :, 4] = -torch.inf
    samples = crf_sample(*arguments, 500, seeded())
    assert not ((samples == 3) | (samples == 4)).any()


def test_the_seed_decides_and_threads_do_not(kernels):
    arguments = inputs(5, 9, 6)
    with threads(3):
        one = crf_sample(*arguments, 7, seeded(1))
    with threads(1):
        two = crf_sample(*arguments, 7, seeded(1))
    assert torch.equal(one, two)
    assert not torch.equal(one, crf_sample(*arguments, 7, seeded(2)))


@pytest.mark.parametrize(("shape", "count"), [((2, 0, 3), 4), ((2, 3, 3), 0), ((0, 3, 3), 4)])
def test_nothing_to_draw(kernels, shape, count):
    assert crf_sample(*inputs(*shape), count).shape == (count, *shape[:2])


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_unit_interval_are_tags(kernels, uniform):
    arguments = inputs(2, 6, 5)
    arguments.transitions[:, 4] = -torch.inf
    arguments.start[0] = -torch.inf
    drawn = torch.full((1, 2, 6), uniform, dtype=torch.float64)
    samples, _ = torch.ops.petkit.crf_sample(*arguments, drawn)
    kept = samples[0][arguments.mask]
    assert ((kept >= 0) & (kept < 5)).all()
    for b, row in enumerate(rows(arguments)):
        assert np.isfinite(reference.score(tuple(samples[0, b][arguments.mask[b]].tolist()), *row))


def test_opcheck(kernels):
    arguments = inputs(3, 5, 4)
    uniforms = torch.rand((2, 3, 5), dtype=torch.float64, generator=seeded())
    torch.library.opcheck(torch.ops.petkit.crf_sample.default, (*arguments, uniforms))


@pytest.mark.parametrize("count", [-1, 2.0, True])
def test_refuses_a_count_that_is_none(count):
    with pytest.raises(InputError, match=f"num_samples must be an integer of at least 0, got {count}"):
        crf_sample(*inputs(1, 2, 3), count)


def test_bad_rows_are_named(kernels):
    arguments = inputs(3, 5, 4)
    arguments.emissions[1, 0, 0] = torch.nan
    with pytest.raises(InputError, match="got nan at batch 1, time 0"):
        crf_sample(*arguments, 2)
