import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import ConfigError, InputError
from petkit.methods.edrm.algorithm import (
    Descriptors,
    Thresholds,
    descriptors,
    explain,
    regimes,
    route,
    token_signature,
)
from tests.reference import edrm

entropy = st.floats(0, 12, width=32)
trajectory = st.lists(st.one_of(entropy, st.sampled_from([0.0, 0.5, 1.0])), max_size=70)


def point(rows, **options):
    return [tuple(row) for row in descriptors(rows, **options).stack().tolist()]


@given(st.lists(trajectory, min_size=1, max_size=5))
def test_descriptors_are_those_of_the_definition(rows):
    for found, row in zip(point(rows), rows, strict=True):
        assert found == pytest.approx(edrm.descriptors(row), rel=1e-9, abs=1e-9)


@given(trajectory)
def test_what_lies_behind_the_end_does_not_matter(row):
    padded = torch.full((2, len(row) + 5), torch.nan, dtype=torch.float64)
    padded[0, : len(row)] = torch.tensor(row, dtype=torch.float64)
    padded[1] = 1.0
    found = point(padded, lengths=[len(row), 4])
    assert found[0] == pytest.approx(point([row])[0], rel=1e-12, abs=1e-12)
    assert found[1] == (4.0, 0.0, 2.0)


@given(trajectory, st.floats(0.1, 5))
def test_trend_and_roughness_do_not_know_the_unit(row, factor):
    scaled = point([[float(value) * 4 for value in row]])[0]
    assert scaled[1:] == pytest.approx(point([row])[0][1:], abs=1e-9)


@given(st.lists(entropy, min_size=3, max_size=40, unique=True))
def test_a_reversed_trajectory_has_the_opposite_trend(row):
    there, back = point([row])[0], point([row[::-1]])[0]
    assert there[1] == pytest.approx(-back[1], abs=1e-9)
    assert there[2] == pytest.approx(back[2], rel=1e-9)


def test_known_trajectories():
    falling, alternating = list(range(64, 0, -1)), [0.0, 2.0] * 32
    assert point([falling])[0][1] == -1
    assert point([falling])[0][2] == pytest.approx(0, abs=5e-3)
    assert point([alternating])[0][2] == pytest.approx(4 * 63 / 64)
    shuffles = np.random.default_rng(0).permuted(np.tile(np.arange(64.0), (4000, 1)), axis=1)
    # Of a random order the expectation is 2; its standard error here is 0.004.
    assert descriptors(torch.from_numpy(shuffles)).von_neumann.mean() == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("row", [[], [1.0], [1.0, 2.0], [0.7] * 64])
def test_too_short_or_all_equal(row):
    assert point([row]) == [(pytest.approx(sum(row)), 0.0, 2.0)]
    assert route(descriptors([row]), Thresholds(cumulative=100)) == ["standard"]


def test_an_empty_batch():
    assert point([]) == []
    assert route(descriptors([])) == []


@pytest.mark.parametrize(
    ("rows", "lengths", "message"),
    [
        ([[1.0], [0.5, math.nan]], None, "got nan in row 1 at token 1"),
        ([[1.0, -0.5]], None, "at least 0, got -0.5 in row 0 at token 1"),
        ([[math.inf]], None, "finite"),
        ([[1.0]], [2], "lengths must lie between 0 and 1 for 1 rows"),
        ([[1.0]], [1, 1], "lengths must"),
        (torch.ones(3), None, r"\(batch, tokens\), got \(3,\)"),
    ],
)
def test_refusals(rows, lengths, message):
    with pytest.raises(InputError, match=message):
        descriptors(rows, lengths)


@given(st.tuples(st.floats(0, 80), st.floats(-1, 1), st.floats(0, 4)))
def test_the_rule(z):
    points = Descriptors(*(torch.tensor([value], dtype=torch.float64) for value in z))
    assert route(points) == [edrm.rule(z)]
    assert explain(z).endswith(
        {"direct": ("direct", "directly"), "cot": "reason on", "standard": "finish the probe"}[edrm.rule(z)]
    )


def test_the_inequalities_are_strict():
    edge = Descriptors(*(torch.tensor(values) for values in ([32.0, 32, 1], [-0.07, 0.07, -1], [0.0, 0, 2])))
    edge = Descriptors(*(x.double() for x in edge))
    edge.spearman[:2] = torch.tensor([-0.07, 0.07], dtype=torch.float64)
    assert route(edge) == ["standard"] * 3


@pytest.mark.parametrize("wrong", [{"cumulative": -1}, {"spearman": 2}, {"von_neumann": math.nan}])
def test_impossible_thresholds(wrong):
    with pytest.raises(ConfigError, match="thresholds must have"):
        Thresholds(**wrong)


def synthetic(regime, count, seed):
    """Trajectories of 64 tokens from processes whose regime is known."""
    rng, t = np.random.default_rng(seed), np.arange(64)
    noise = rng.normal(0, 0.06, (count, 64))
    if regime == "convergent":
        # The noise is what is left of it after smoothing over neighbours, as in text.
        curve = rng.uniform(0.6, 1.2, (count, 1)) * np.exp(-t / rng.uniform(10, 30, (count, 1)))
    elif regime == "exploratory":
        curve = 0.2 + rng.uniform(0, 0.004, (count, 1)) * t
        noise = rng.normal(0, 0.15, (count, 64))
    else:
        curve = np.full((count, 64), 1.0)
        noise = rng.normal(0, 0.4, (count, 64))
    return torch.from_numpy(np.abs(curve + noise))


@pytest.mark.parametrize("regime", ["convergent", "exploratory", "overload"])
def test_trajectories_of_known_processes_are_told_apart(regime):
    found = regimes(descriptors(synthetic(regime, 2000, 1)))
    assert found.count(regime) / 2000 >= 0.95


def test_white_noise_is_sometimes_taken_for_convergent():
    """As docs/edrm.md says: no trend of 64 values is as small as the dead band for sure."""
    points = descriptors(torch.rand(20_000, 64, generator=torch.Generator().manual_seed(0)) * 0.4)
    # By normal approximation: P(z < -0.07 sqrt(63)) is 0.289; of 20,000 draws 0.01 are three deviations.
    assert (points.spearman < -0.07).double().mean().item() == pytest.approx(0.29, abs=0.015)
    assert regimes(points).count("convergent") / 20_000 == pytest.approx(0.155, abs=0.015)


def test_token_signature():
    assert token_signature([[0.1, 0.2, 0.4], [0.9, 0.5, 0.1], [0.5, 0.5, 0.5]]) == ["cot", "direct", "direct"]
