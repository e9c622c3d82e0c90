import math
from typing import Any

import pytest
import torch
from torch import nn

from petkit.errors import ConfigError
from petkit.training.optim import Schedule, make_optimizer, make_schedule, trainable_parameters

SCHEDULE = Schedule(peak=1.0, warmup_start=0.1, minimum=0.01, warmup_steps=10, total_steps=110)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (5, 0.55), (10, 1.0), (109, 0.01), (200, 0.01)],
)
def test_the_rate_at_the_corners(step: int, expected: float) -> None:
    assert SCHEDULE.rate(step) == pytest.approx(expected)


def test_the_rate_falls_by_half_a_cosine_after_the_warm_up() -> None:
    rates = [SCHEDULE.rate(step) for step in range(10, 110)]
    expected = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / 99)) for i in range(100)]
    assert rates == pytest.approx(expected)


def test_every_step_of_the_warm_up_has_its_own_rate() -> None:
    assert len({SCHEDULE.rate(step) for step in range(11)}) == 11


def test_a_schedule_counts_optimiser_steps(toy: Any) -> None:
    schedule = make_schedule(toy.config(epochs=5, warmup_epochs=1.5), steps_per_epoch=4)
    assert (schedule.warmup_steps, schedule.total_steps) == (6, 20)


def test_no_warm_up_starts_at_the_peak_and_one_step_is_no_division_by_zero(toy: Any) -> None:
    schedule = make_schedule(toy.config(epochs=1, warmup_epochs=0), steps_per_epoch=1)
    assert schedule.rate(0) == pytest.approx(0.01)


def test_only_trainable_parameters_reach_the_optimiser(toy: Any) -> None:
    parameters = trainable_parameters(toy.make_model())
    optimizer = make_optimizer(parameters, toy.config())
    assert list(parameters) == ["3.weight", "3.bias"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one trainable parameter"):
        trainable_parameters(nn.Linear(2, 2).requires_grad_(False))


def test_one_step_is_adamw_by_its_equations() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    from petkit.training.config import TrainingConfig

    optimizer = make_optimizer({"w": weight}, TrainingConfig(learning_rate=0.1, weight_decay=0.5))
    weight.grad = torch.tensor([0.3, 0.0])
    optimizer.step()
    # First step: bias-corrected moments are g and g^2, so the update is sign(g) * |g| / (|g| + eps).
    expected = torch.tensor([1.0 * (1 - 0.05) - 0.1 * 0.3 / (0.3 + 1e-8), -2.0 * (1 - 0.05)])
    torch.testing.assert_close(weight.detach(), expected)
