import math
from dataclasses import replace

import pytest
import torch

from petkit.errors import InputError
from petkit.methods.edrm import calibration
from petkit.methods.edrm.algorithm import MODES, Descriptors, Thresholds, explain, route
from petkit.methods.edrm.calibration import Objective, Outcomes, bootstrap, calibrate
from petkit.methods.edrm.learned import cross_validated, train_router

# Mean points of three kinds of questions, and which mode is right for them.
KINDS = {"cot": (10.0, -0.5, 0.8), "direct": (60.0, 0.1, 1.9), "standard": (15.0, 0.0, 2.2)}


def outcomes(count=60, seed=0, names=("a", "b")):
    """Questions of which one mode alone is right, told by the point; reasoning costs ten times as much."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [list(KINDS)[index % 3] for index in range(count)]
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 0.02, 0.1])
    z = torch.tensor([KINDS[kind] for kind in kinds], dtype=torch.float64) + noise
    z[:, 0].clamp_(min=0)
    correct = torch.tensor([[float(mode == kind) for mode in MODES] for kind in kinds])
    tokens = torch.tensor([[5, 80, 300]] * count)
    names = tuple(names[index % len(names)] for index in range(count))
    return Outcomes(
        Descriptors(*z.T), correct, tokens, torch.full((count,), 64), names, trajectories(kinds)
    ), kinds


def trajectories(kinds):
    """One of each kind: falling smoothly, high and rising, without a trend."""
    shapes = {
        "cot": tuple(1 - n / 40 for n in range(30)),
        "direct": tuple(2 + n / 40 for n in range(30)),
        "standard": tuple(0.5 + 0.1 * (n % 2) for n in range(31)),
    }
    return tuple(shapes[kind] for kind in kinds)


def test_tokens_include_the_probe_and_standard_goes_on_with_it():
    data, _ = outcomes(3)
    assert data.routed_tokens().tolist() == [[69, 80, 364]] * 3
    score, tokens = calibration.taken(data, ["cot", "direct", "standard"])
    assert tokens.tolist() == [364, 69, 80]
    assert score.tolist() == [data.correct[0, 2], data.correct[1, 0], data.correct[2, 1]]


def test_utility():
    found = calibration.utility(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([100, 0, 1]))
    assert found.tolist() == pytest.approx([1 - 0.14, 0, 1])


def test_calibration_finds_the_truth():
    data, kinds = outcomes()
    thresholds = calibrate(data)
    fresh, truth = outcomes(300, seed=1)
    assert sum(a == b for a, b in zip(route(data.points, thresholds), kinds, strict=True)) >= 0.95 * len(
        kinds
    )
    assert sum(a == b for a, b in zip(route(fresh.points, thresholds), truth, strict=True)) >= 0.9 * len(
        truth
    )


def test_a_token_budget_is_kept_and_an_accuracy_is_reached():
    data, _ = outcomes()
    for objective in (Objective("accuracy", limit=120), Objective("tokens", limit=0.6)):
        found = calibration.taken(data, route(data.points, calibrate(data, objective)))
        assert objective.reached(*found).is_met
    assert found[1].mean() < 180
    cheap = calibration.taken(data, route(data.points, calibrate(data, Objective("accuracy", limit=120))))
    rich = calibration.taken(data, route(data.points, calibrate(data, Objective("accuracy", limit=1000))))
    assert cheap[0].mean() < rich[0].mean()


def test_constant_modes_are_within_reach():
    data, _ = outcomes()
    for mode in ("direct", "standard"):
        right = replace(data, correct=torch.tensor([[float(name == mode) for name in MODES]] * len(data)))
        assert set(route(right.points, calibrate(right))) == {mode}


def test_a_limit_that_cannot_be_met_is_approached():
    data, _ = outcomes()
    objective = Objective("accuracy", limit=1)
    found = calibration.taken(data, route(data.points, calibrate(data, objective)))
    assert not objective.reached(*found).is_met
    assert found[1].mean() <= calibration.taken(data, route(data.points))[1].mean()


def test_leave_one_out_never_looks_at_the_held_out_answers():
    data, _ = outcomes(names=("a", "b", "c"))
    rows = data.rows_of("b")
    before = calibration.leave_one_out(data)
    data.correct[rows] = 1 - data.correct[rows]
    after = calibration.leave_one_out(data)
    assert [before[row] for row in rows] == [after[row] for row in rows]
    with pytest.raises(InputError, match=r"needs at least two, got \['a'\]"):
        calibration.leave_one_out(data.select(data.rows_of("a")))


def test_a_data_set_is_routed_as_one():
    data, _ = outcomes(90, names=("x", "y", "z"))
    # With three names, each data set has one kind of question alone.
    for kind in ("mean_trajectory", "mean_point"):
        routed = calibration.by_dataset(data, kind, questions=10)
        modes = route(routed.points)
        for name, wanted in zip("xyz", KINDS, strict=True):
            assert {modes[row] for row in data.rows_of(name)} == {wanted}
    # Ten of thirty questions a set are probed: standard answers go on with that, the rest pay nothing.
    extra = routed.tokens - data.tokens
    assert extra[:, MODES.index("standard")].eq(0).all()
    assert extra.sum(dim=0).tolist() == [30 * 64, 0, 30 * 64]
    assert calibration.leave_one_out(data, route_by=calibration.by_dataset)


def test_the_probes_of_a_data_set_are_shared():
    data, _ = outcomes(200, names=("x",))
    extra = calibration.by_dataset(data).tokens - data.tokens
    assert sorted(extra[:, 0].tolist()) == [0.0] * 150 + [64.0] * 50
    assert len(calibration.probed_places(200)) == len(set(calibration.probed_places(200))) == 50
    assert calibration.probed_places(200) != calibration.probed_places(200, seed=1)


def test_thresholds_keep_the_fallback():
    data, _ = outcomes()
    thresholds = calibrate(data, overload="standard")
    assert thresholds.overload == "standard"
    high = Descriptors(*torch.tensor([[1e9], [0.0], [2.0]], dtype=torch.float64))
    assert route(high, thresholds) == ["standard"]
    assert "falls back to standard" in explain((1e9, 0.0, 2.0), thresholds)


def test_the_oracle_is_right_and_cheap():
    data, kinds = outcomes(9)
    assert calibration.oracle(data) == kinds
    data.correct[:] = 1
    assert calibration.oracle(data) == ["direct"] * 9


def test_the_learned_router():
    data, kinds = outcomes(150)
    learned = cross_validated(data)
    assert sum(a == b for a, b in zip(learned.modes, kinds, strict=True)) >= 0.9 * len(kinds)
    assert learned.best.tolist() == [a == b for a, b in zip(learned.modes, kinds, strict=True)]
    assert ((learned.confidence > 1 / 3) & (learned.confidence <= 1)).all()
    router = train_router(data)
    again = train_router(data)
    assert all(torch.equal(a, b) for a, b in zip(router.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="at least two"):
        train_router(data.select([0]))


def test_the_learned_router_takes_constant_descriptors():
    data, _ = outcomes(30)
    data.points.von_neumann[:] = 2.0
    assert all(parameter.isfinite().all() for parameter in train_router(data).parameters())


def test_a_saving_is_a_ratio_of_resampled_sums():
    spent, reference = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0])
    found = calibration.bootstrap_saving(spent, reference)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(1, 500, (40,), generator=generator)
    found = calibration.bootstrap_saving(reference.double() * torch.rand(40, generator=generator), reference)
    # Never more than everything, however the questions are drawn.
    assert 0 < found.low <= found.mean <= found.high < 1
    with pytest.raises(InputError, match="at least one value"):
        calibration.bootstrap_saving(spent[:0], reference[:0])


def test_bootstrap_covers():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(100):
        found = bootstrap(torch.randn(60, generator=generator) + 0.3, seed=trial, draws=400)
        assert found.low <= found.mean <= found.high
        hits += found.low <= 0.3 <= found.high
    # Of 100 intervals of 95 %: the binomial's 0.1 % point is 87.
    assert hits >= 87
    with pytest.raises(InputError, match="at least one"):
        bootstrap(torch.empty(0))


def test_shapes_are_checked():
    data, _ = outcomes(4)
    with pytest.raises(InputError, match="must have three modes each"):
        Outcomes(data.points, data.correct[:, :2], data.tokens, data.probe, data.datasets)
    assert not math.isnan(calibrate(data.select([0])).cumulative)
    with pytest.raises(InputError, match="at least one labelled"):
        calibrate(data.select([]))
    assert isinstance(calibrate(data), Thresholds)
