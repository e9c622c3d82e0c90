from typing import Any

import torch
from torch import nn

from petkit.training.evaluate import StepOutput
from petkit.training.memory import estimate_memory


def step(model: nn.Module, batch: Any) -> StepOutput:
    return StepOutput(model(batch).sum(), len(batch))


def test_a_trained_linear_map_keeps_its_input() -> None:
    model = nn.Linear(100, 10, bias=False)
    estimate = estimate_memory(model, step, torch.ones(1, 100), micro_batch=8)
    assert estimate.weights == 4000
    assert estimate.optimizer == 3 * 4000
    assert estimate.activations == 8 * 400
    assert estimate.total == 4000 + 12000 + 3200


def test_a_frozen_map_in_front_keeps_nothing() -> None:
    model = nn.Sequential(nn.Linear(100, 100).requires_grad_(False), nn.Linear(100, 10, bias=False))
    estimate = estimate_memory(model, step, torch.ones(1, 100), micro_batch=1)
    # The input of the trained map only: the frozen one needs no graph.
    assert estimate.activations == 400
    assert estimate.optimizer == 3 * 4000


def test_a_frozen_map_behind_keeps_only_its_weight() -> None:
    model = nn.Sequential(nn.Linear(100, 10, bias=False), nn.Linear(10, 1000).requires_grad_(False))
    assert estimate_memory(model, step, torch.ones(1, 100), micro_batch=1).activations == 400
