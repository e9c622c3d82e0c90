"""The `training:` section of a recipe. Torch-free."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from petkit.configuration import Config, above, applies_to

Precision = Literal["fp32", "bf16"]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Read a duration such as 90s, 30m or 2h.

    Args:
        text: a positive number and one of the units s, m, h.

    Returns:
        Seconds.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if not match or float(match[1]) == 0:
        raise ValueError(f"must be a positive duration such as 90s, 30m or 2h, got {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


class TrainingConfig(Config):
    """Optimiser, schedule, precision, limits and selection."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the training split."""

    batch_size: int = Field(default=64, ge=1)
    """Examples per optimiser step and process; divided into `gradient_accumulation` micro-batches."""

    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimiser step. The result equals one large batch without dropout, whose masks are
    drawn for each micro-batch."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """Decoupled weight decay, on the latent weights."""

    warmup_epochs: float = Field(default=10, ge=0)
    """Linear warm-up, in epochs."""

    warmup_learning_rate: float = Field(
        default=1e-6, ge=0, json_schema_extra=applies_to(warmup_epochs=(above(0),))
    )
    """Learning rate at the first step of the warm-up."""

    min_learning_rate: float = Field(default=1e-5, ge=0)
    """Learning rate at the end of the cosine."""

    max_gradient_norm: float | None = Field(default=None, gt=0)
    """Clip the gradient's global norm; none by default, as in the paper."""

    drop_last: bool = True
    """Drop the last, smaller batch of an epoch."""

    precision: Precision = "fp32"
    """bf16: autocast of the frozen model; latent weights and the optimiser stay float32."""

    select: Literal["validation", "last"] = "last"
    """last: train on train+validation and keep the last step; validation: train on train and keep the step
    that is best on validation. The test split is never used to choose."""

    evaluate_every: int = Field(default=10, ge=1, json_schema_extra=applies_to(select=("validation",)))
    """Epochs between evaluations on the validation split."""

    evaluate_every_steps: int | None = Field(
        default=None, ge=1, json_schema_extra=applies_to(select=("validation",))
    )
    """Optimiser steps between evaluations as well, for long epochs."""

    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints; the newest two are kept."""

    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between checkpoints as well, for long epochs."""

    tensorboard: bool = False
    """Write TensorBoard events beside metrics.jsonl (needs the extra `track`)."""

    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps (a success, recorded as `stopped`)."""

    max_time: str | None = None
    """Stop after this much time, such as 90s, 30m or 2h (a success, recorded as `stopped`)."""

    @field_validator("max_time")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_duration(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"gradient_accumulation must be at most batch_size {self.batch_size}, got "
                f"{self.gradient_accumulation}: batch_size counts the examples of all micro-batches of a "
                "process"
            )
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs must be at most epochs {self.epochs}, got {self.warmup_epochs:g}: the "
                f"learning rate would never reach its peak of {self.learning_rate:g}"
            )
        # Without a warm-up its first rate has no effect, whatever it is.
        warmup = ("warmup_learning_rate",) if self.warmup_epochs else ()
        for name in (*warmup, "min_learning_rate"):
            rate = getattr(self, name)
            if rate > self.learning_rate:
                raise ValueError(f"{name} must be at most learning_rate {self.learning_rate:g}, got {rate:g}")
        return self
