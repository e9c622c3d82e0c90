"""Footprints by hand and by law."""

import numpy as np
import pytest
import torch

from petkit.errors import ConfigError
from petkit.merging.analysis.footprint import (
    CHUNK,
    ETA,
    Room,
    Tally,
    changed_weights,
    check_eta,
    cosine,
    random_overlap,
    shifts_of,
    tally,
)
from tests.reference import shifts as reference

# Changed by both in one direction, by both in opposite ones, by one, by the other, by none (too little).
BASE = torch.tensor([1.0, 1.0, 1.0, 1.0, 1000.0])
FIRST = torch.tensor([2.0, 2.0, 3.0, 1.0, 1000.5])
SECOND = torch.tensor([3.0, 0.0, 1.0, 5.0, 1000.0])


def test_a_change_is_relative_to_the_larger_weight():
    found = changed_weights(torch.stack([FIRST, SECOND]), BASE, 1e-3)
    assert found.tolist() == [[True, True, True, False, False], [True, True, False, True, False]]
    # At the threshold itself nothing has changed; without a threshold whatever differs has.
    assert changed_weights(torch.tensor([[2.0]]), torch.tensor([1.0]), 0.5).tolist() == [[False]]
    assert changed_weights(FIRST[None], BASE, 0.0).tolist() == [[True, True, True, False, True]]
    assert changed_weights(torch.zeros(1, 1), torch.zeros(1), 0.0).tolist() == [[False]]


def test_a_tally_by_hand():
    models = torch.stack([FIRST, SECOND])
    room = Room(2)
    found = tally(shifts_of(models, BASE, ETA, room), room)
    assert (found.count, found.base_square) == (5, 1_000_004.0)
    assert found.both.tolist() == [[3, 2], [2, 3]]
    assert found.conflicts.tolist() == [[0, 1], [1, 0]]
    assert found.dots.tolist() == [[6.25, 1.0], [1.0, 21.0]]
    assert found.both_dots.tolist() == [[6.0, 1.0], [1.0, 21.0]]
    # Where the other changed too: (1, 1) of the first, (2, -1) of the second.
    assert found.both_squares.tolist() == [[6.0, 2.0], [5.0, 21.0]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tallies_of_parts_add_up_to_the_definition(seed, dtype):
    source = torch.Generator().manual_seed(seed)
    base = torch.randn(1000, generator=source).to(dtype)
    moved = torch.rand(3, 1000, generator=source) < torch.tensor([[0.3], [0.5], [0.9]])
    models = (base + moved * torch.randn(3, 1000, generator=source)).to(dtype)
    total, room = Tally.empty(3), Room(3)
    for part in (slice(0, 1), slice(1, 700), slice(700, 1000)):
        total.add(tally(shifts_of(models[:, part], base[part], 0.01, room), room))
    rows, origin = models.double().numpy(), base.double().numpy()
    for i, j in ((0, 1), (0, 2), (2, 1)):
        wanted = reference.pair(rows[i], rows[j], origin, 0.01)
        both = int(total.both[i, j])
        assert both / 1000 == wanted["changed_by_both"]
        assert int(total.conflicts[i, j]) / both == pytest.approx(wanted["sign_conflict"], rel=1e-12)
        square = total.both_squares
        found = cosine(float(total.both_dots[i, j]), float(square[i, j]), float(square[j, i]))
        # Differences of float32 numbers are rounded once.
        assert found == pytest.approx(wanted["cosine_overlap"], abs=1e-6)
    assert torch.equal(total.both, total.both.T)
    assert torch.equal(total.conflicts, total.conflicts.T)


def test_counts_of_a_whole_chunk_are_exact():
    models = torch.ones(2, CHUNK)
    models[1, ::2] = -1
    room = Room(2)
    found = tally(shifts_of(models, torch.zeros(CHUNK), ETA, room), room)
    assert found.both.tolist() == [[CHUNK] * 2] * 2
    assert found.conflicts.tolist() == [[0, CHUNK // 2], [CHUNK // 2, 0]]


@pytest.mark.parametrize("density", [0.1, 0.3, 0.8])
def test_random_masks_overlap_as_they_should(density):
    masks = np.random.default_rng(0).random((2, 200_000)) < density
    found = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert random_overlap(density, density) == pytest.approx(density / (2 - density), rel=1e-12)
    # Five standard deviations of a share of the union.
    assert found == pytest.approx(density / (2 - density), abs=5 * 0.5 / np.sqrt(200_000 * density))


def test_the_papers_chance_overlap_is_0_18():
    assert random_overlap(0.3, 0.3) == pytest.approx(0.176, abs=5e-4)
    assert random_overlap(1.0, 0.2) == 0.2
    assert random_overlap(0.0, 0.0) is None


def test_cosines():
    assert cosine(2.0, 4.0, 1.0) == 1.0
    assert cosine(-2.0, 4.0, 1.0) == -1.0
    assert cosine(0.0, 0.0, 1.0) is None


@pytest.mark.parametrize("eta", [-0.1, 1.0, float("nan")])
def test_a_threshold_that_is_none(eta):
    with pytest.raises(ConfigError, match="eta must be at least 0 and below 1"):
        check_eta(eta)
