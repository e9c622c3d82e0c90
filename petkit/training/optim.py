"""AdamW on the trainable parameters, and the learning rate of every optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from petkit.errors import ConfigError
from petkit.training.config import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine, in optimiser steps."""

    peak: float
    warmup_start: float
    minimum: float
    warmup_steps: int
    total_steps: int

    def rate(self, step: int) -> float:
        """Return the learning rate of one optimiser step, see `learning_rate`."""
        return learning_rate(step, self)


def learning_rate(step: int, schedule: Schedule) -> float:
    """Compute the learning rate that optimiser step `step` uses.

    Args:
        step: 0 for the first optimiser step.
        schedule: rates per step and lengths in steps.

    Returns:
        `warmup_start` at step 0, `peak` at step `warmup_steps`, `minimum` at the last step.

    Source:
        The cosine of SGDR without restarts. The original code counts epochs, and its first two epochs both
        run at the start of the warm-up; here every step has its own rate and the warm-up is as long as asked.
    """
    if step < schedule.warmup_steps:
        return schedule.warmup_start + (schedule.peak - schedule.warmup_start) * step / schedule.warmup_steps
    length = max(1, schedule.total_steps - 1 - schedule.warmup_steps)
    progress = min(1.0, (step - schedule.warmup_steps) / length)
    return schedule.minimum + (schedule.peak - schedule.minimum) * 0.5 * (1 + math.cos(math.pi * progress))


def make_schedule(config: TrainingConfig, steps_per_epoch: int) -> Schedule:
    """Turn the epochs of a recipe into a schedule in steps.

    Args:
        config: the `training:` section.
        steps_per_epoch: optimiser steps in one epoch, at least 1.

    Returns:
        The schedule. Limits (`max_steps`, `max_time`) cut a run short and leave the schedule as it is.

    Source:
        Jie, Wang and Deng (2023): AdamW, 10 of 100 epochs of warm-up, cosine.
    """
    total = config.epochs * steps_per_epoch
    return Schedule(
        peak=config.learning_rate,
        warmup_start=config.warmup_learning_rate,
        minimum=config.min_learning_rate,
        warmup_steps=min(round(config.warmup_epochs * steps_per_epoch), total),
        total_steps=total,
    )


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """List the parameters that training changes.

    Args:
        model: any module; the frozen ones have `requires_grad` off.

    Returns:
        Name -> parameter, in the model's order; a parameter shared by two modules is listed once.

    Raises:
        ConfigError: nothing is trainable.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise ConfigError(
            "the model must have at least one trainable parameter, got none: insert adapters first"
        )
    return found


def make_optimizer(parameters: dict[str, nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """Make AdamW over the trainable parameters, one group, decay on all of them as in the original.

    Args:
        parameters: name -> parameter.
        config: the `training:` section; the learning rate is set before every step.

    Returns:
        The optimiser; its state is empty until the first step.

    Source:
        Loshchilov and Hutter (2019).
    """
    return torch.optim.AdamW(
        list(parameters.values()), lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False
    )
