"""One step of the training: the student's loss against labels and teacher, and what metrics.jsonl keeps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from petkit.methods.vision_distillation.algorithm import (
    agreements,
    distillation_loss,
    feature_distance,
    logit_distillation,
)
from petkit.methods.vision_distillation.config import DistillationConfig
from petkit.methods.vision_distillation.model import Pupil
from petkit.methods.vision_distillation.targets import FEATURES, LOGITS
from petkit.models.loaded import compute_logits
from petkit.training.classification import classification_loss, classified
from petkit.training.evaluate import StepFunction, StepOutput

# Means that metrics.jsonl has of every step; those that a run has no numbers for are left out.
MEASURES = ("cross_entropy", "kl", "feature_distance", "agreement")


def distillation_step(config: DistillationConfig) -> StepFunction:
    """Make the step function.

    Args:
        config: the weights of what is learnt.

    Returns:
        A function of a `Pupil` and a batch of a `TaughtDataset`.
    """

    def step(model: nn.Module, batch: Mapping[str, Tensor]) -> StepOutput:
        assert isinstance(model, Pupil)
        return _step(config, model, batch)

    return step


def _step(config: DistillationConfig, model: Pupil, batch: Mapping[str, Tensor]) -> StepOutput:
    labels, teacher = batch["labels"], batch.get(LOGITS)
    logits, projected = model(batch["pixel_values"])
    count = len(labels)
    entropy = classification_loss(logits, labels) / count
    measured = {"cross_entropy": entropy}
    softened = distance = None
    if config.alpha:
        assert teacher is not None
        softened = logit_distillation(logits, teacher, config.temperature)
        measured["kl"] = softened / config.temperature**2
    if projected is not None:
        distance = feature_distance(projected, batch[FEATURES], config.feature_loss)
        measured["feature_distance"] = distance
    if teacher is not None:
        measured["agreement"] = agreements(logits, teacher).float().mean()
    loss = distillation_loss(entropy, config.alpha, softened, config.feature_weight, distance)
    return StepOutput(
        count * loss,
        count,
        logits.detach().argmax(-1) == labels,
        labels,
        measures={name: (count * value.item(), float(count)) for name, value in measured.items()},
    )


class ComparedStep:
    """The step that measures a student, which also counts where it answers as its teacher does."""

    def __init__(self) -> None:
        self.agreed = 0

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepOutput:
        """Run the student on a batch of a `TaughtDataset`."""
        logits = compute_logits(model, batch)
        if LOGITS in batch:
            self.agreed += int(agreements(logits, batch[LOGITS]).sum())
        return classified(logits, batch["labels"])
