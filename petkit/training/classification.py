"""The cross-entropy of classifiers, and the step that trains and measures them by it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from petkit.models.loaded import compute_logits
from petkit.training.evaluate import StepOutput


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropies of a batch, without label smoothing.

    Args:
        logits: (batch, classes), any floating dtype.
        labels: int64 (batch,), class numbers.

    Returns:
        A scalar in nats, float32.

    Source:
        Jie, Wang and Deng (2023), section 4.
    """
    return functional.cross_entropy(logits.float(), labels, reduction="sum")


def classification_step(model: nn.Module, batch: Mapping[str, Tensor]) -> StepOutput:
    """Run a classifier on one batch.

    Args:
        model: an image or text classifier.
        batch: the model's inputs and `labels` (batch,).

    Returns:
        Sums of loss and count, and which examples are right.
    """
    return classified(compute_logits(model, batch), batch["labels"])


def classified(logits: Tensor, labels: Tensor) -> StepOutput:
    """Judge logits by labels.

    Args:
        logits: (batch, classes).
        labels: int64 (batch,), class numbers.

    Returns:
        Sums of loss and count, and which examples are right.
    """
    loss = classification_loss(logits, labels)
    return StepOutput(loss, len(labels), logits.detach().argmax(-1) == labels, labels)
