"""The `training:` section of a recipe. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from petkit.configuration import Config


class TrainingConfig(Config):
    """Optimiser, schedule, precision, limits and selection."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the training split."""

    batch_size: int = Field(default=64, ge=1)
    """Examples per optimiser step and process; divided into `gradient_accumulation` micro-batches."""

    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimiser step; the result equals one large batch."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """Decoupled weight decay, on the latent weights."""

    warmup_epochs: float = Field(default=10, ge=0)
    """Linear warm-up, in epochs."""

    warmup_learning_rate: float = Field(default=1e-6, ge=0)
    """Learning rate at the first step of the warm-up."""

    min_learning_rate: float = Field(default=1e-5, ge=0)
    """Learning rate at the end of the cosine."""

    max_gradient_norm: float | None = Field(default=None, gt=0)
    """Clip the gradient's global norm; none by default, as in the paper."""

    drop_last: bool = True
    """Drop the last, smaller batch of an epoch."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast of the frozen model; latent weights and the optimiser stay float32."""

    select: Literal["validation", "last"] = "last"
    """last: train on train+validation and keep the last step; validation: train on train, keep the step that is best
    on validation. The test split is never used to choose."""

    evaluate_every: int = Field(default=10, ge=1)
    """Epochs between evaluations on the validation split."""

    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints; the newest two are kept."""

    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps (a success, recorded as `stopped`)."""

    max_time: str | None = None
    """Stop after this much time, such as 90s, 30m or 2h (a success, recorded as `stopped`)."""
