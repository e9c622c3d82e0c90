"""Evaluation of a model on one split: sums over examples, an interval, and the rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from petkit.errors import InputError
from petkit.training.config import Precision
from petkit.training.distributed import World


@dataclass(frozen=True)
class StepOutput:
    """What a step function gives for one batch: sums, so that batches of unequal size add up exactly."""

    loss: Tensor
    """Sum of the losses, a differentiable scalar, in nats."""

    count: int
    """Number of terms in the sum: examples, or target tokens."""

    correct: Tensor | None = None
    """bool (batch,): whether each example is classified correctly."""

    labels: Tensor | None = None
    """int64 (batch,): the true classes, for accuracies per class."""

    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Further means for the record: name to a sum and its number of terms."""


StepFunction = Callable[[nn.Module, Any], StepOutput]


@dataclass(frozen=True)
class Evaluation:
    """Result on one split."""

    n: int
    """Classified examples, or target tokens of a language model."""

    loss: float
    """Mean loss in nats per example or token."""

    examples_per_second: float
    """Examples over wall-clock time, loading included."""

    accuracy: float | None = None
    """Fraction classified correctly; None for a language model."""

    interval: tuple[float, float] | None = None
    """95 % Wilson interval of the accuracy."""

    per_class: Mapping[str, float | None] | None = None
    """Accuracy of each class; None for a class without examples."""

    @property
    def perplexity(self) -> float | None:
        """exp of the loss, for a language model."""
        return None if self.accuracy is not None else math.exp(min(self.loss, 700.0))

    @property
    def score(self) -> float:
        """What model selection maximises: the accuracy, or minus the loss of a language model."""
        return -self.loss if self.accuracy is None else self.accuracy

    def record(self) -> dict[str, float]:
        """What metrics.jsonl keeps of an evaluation."""
        loss = {"eval_loss": self.loss}
        return loss if self.accuracy is None else {**loss, "eval_accuracy": self.accuracy}

    def payload(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        common = {"n": self.n, "loss": self.loss, "examples_per_second": self.examples_per_second}
        if self.accuracy is None:
            return {"unit": "tokens", "perplexity": self.perplexity, **common}
        interval = None if self.interval is None else list(self.interval)
        per_class = None if self.per_class is None else dict(self.per_class)
        return {
            "accuracy": self.accuracy,
            "interval": interval,
            "per_class": per_class,
            "unit": "examples",
            **common,
        }


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Compute the 95 % interval of a proportion.

    Args:
        correct: successes, or a sum of numbers from 0 to 1, whose interval is then on the wide side.
        n: trials, at least 1.

    Returns:
        (low, high), within [0, 1].

    Raises:
        InputError: n below 1 or correct outside [0, n].

    Source:
        Wilson (1927), score interval without continuity correction.
    """
    if n < 1 or not 0 <= correct <= n:
        raise InputError(f"a proportion needs 0 <= correct <= n and n >= 1, got {correct} of {n}")
    z = 1.959963984540054
    p = correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the formula is exact in real numbers; rounding must not cut the observed value off.
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def evaluate(
    model: nn.Module,
    dataset: Any,
    step: StepFunction,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    workers: int = 0,
    classes: Sequence[str] | None = None,
    world: World | None = None,
) -> Evaluation:
    """Evaluate a model on every example of a split, once, in evaluation mode.

    Args:
        model: the model; its training mode is restored afterwards.
        dataset: map-style, with a `collate` method that makes a batch from a list of items.
        step: gives the loss and the correct examples of a batch.
        batch_size: examples per forward pass; the result does not depend on it beyond rounding.
        device: where the model is.
        precision: bf16 runs under autocast.
        workers: loader processes.
        classes: names in label order, for accuracies per class.
        world: processes that share the split; None is this one alone.

    Returns:
        The evaluation; the same on every process.

    Raises:
        InputError: the split is empty or holds no target.
    """
    world = world or World()
    if len(dataset) == 0:
        raise InputError("a split must hold at least one example to be evaluated, got none")
    device = torch.device(device)
    totals = _Totals(device, len(classes) if classes else 0)
    loader = DataLoader(
        dataset,
        batch_sampler=_chunks(range(world.rank, len(dataset), world.size), batch_size),
        collate_fn=dataset.collate,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )
    was_training = model.training
    model.eval()
    started = time.perf_counter()
    try:
        # Not inference_mode: a model that caches a tensor here may need it for gradients afterwards.
        with torch.no_grad():
            for batch in loader:
                with autocast(device, precision):
                    totals.add(step(model, to_device(batch, device)))
            world.sum_(totals.tensors())
    finally:
        model.train(was_training)
    return totals.evaluation(len(dataset) / (time.perf_counter() - started), classes)


class _Totals:
    """Sums over the batches of this process, in float64: counts are exact."""

    def __init__(self, device: torch.device, classes: int) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, count, correct, classified
        self.per_class = torch.zeros(2, classes, dtype=torch.float64, device=device)

    def add(self, output: StepOutput) -> None:
        self.sums[0] += output.loss.double()
        self.sums[1] += output.count
        if output.correct is None:
            return
        self.sums[2] += output.correct.sum()
        self.sums[3] += output.correct.numel()
        if output.labels is not None and self.per_class.shape[1]:
            hits = output.correct.double()
            self.per_class[0].index_add_(0, output.labels, hits)
            self.per_class[1].index_add_(0, output.labels, torch.ones_like(hits))

    def tensors(self) -> list[Tensor]:
        return [self.sums, self.per_class]

    def evaluation(self, rate: float, classes: Sequence[str] | None) -> Evaluation:
        loss, count, correct, classified = self.sums.tolist()
        if count == 0:
            raise InputError(
                "a split must hold at least one target to be evaluated, got none: is everything masked?"
            )
        if not classified:
            return Evaluation(n=int(count), loss=loss / count, examples_per_second=rate)
        right, seen = self.per_class.tolist()
        per_class = {
            name: r / s if s else None for name, r, s in zip(classes or (), right, seen, strict=True)
        }
        return Evaluation(
            n=int(classified),
            loss=loss / count,
            examples_per_second=rate,
            accuracy=correct / classified,
            interval=wilson_interval(int(correct), int(classified)),
            per_class=per_class or None,
        )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Enter the precision of a forward pass.

    Args:
        device: where it runs.
        precision: fp32 changes nothing; bf16 autocasts matrix products.

    Returns:
        A context manager.

    Source:
        torch.autocast.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device.

    Args:
        batch: a tensor, or dicts, lists and tuples of them; anything else is passed on.
        device: target.

    Returns:
        The batch in the same shape.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _chunks(indices: range, size: int) -> list[list[int]]:
    return [list(indices[at : at + size]) for at in range(0, len(indices), size)]
