"""The losses that train adapters whose forward pass sees low-bit weights.

The quantiser is `petkit.ops.lowbit_fake_quantize`, the modules are in `petkit.models.inserts`, the loss of
classifiers is in `petkit.training.classification`; README.md has the equations.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from petkit.data.tokens import at_targets
from petkit.models.loaded import compute_logits
from petkit.training.classification import classification_step
from petkit.training.evaluate import StepFunction, StepOutput


def next_token_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Sum the negative log-probabilities of the target tokens.

    Args:
        logits: (batch, tokens, vocab); position t predicts token t + 1.
        labels: int64 (batch, tokens), as in `at_targets`.

    Returns:
        The sum in nats, float32, and the number of targets.

    Source:
        Supervised fine-tuning: the loss counts the assistant's tokens only.
    """
    # Selecting first keeps the float32 copy of the logits as small as the targets are few.
    chosen, targets = at_targets(logits, labels)
    return functional.cross_entropy(chosen.float(), targets, reduction="sum"), len(targets)


def language_step(model: nn.Module, batch: Mapping[str, Tensor]) -> StepOutput:
    """Run a causal language model on one batch.

    Args:
        model: a causal LM.
        batch: `input_ids`, `attention_mask` and `labels`, (batch, tokens) each.

    Returns:
        Sums of loss and target tokens.
    """
    return StepOutput(*next_token_loss(compute_logits(model, batch), batch["labels"]))


def step_function(task: str) -> StepFunction:
    """Choose the step of a task.

    Args:
        task: image_classification, text_classification or causal_lm.

    Returns:
        A step function for `fit` and `evaluate`.
    """
    return language_step if task == "causal_lm" else classification_step
