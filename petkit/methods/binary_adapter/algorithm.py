"""The method itself: adapters whose forward pass sees low-bit weights, and the losses that train them.

The quantiser is `petkit.ops.lowbit_fake_quantize`, the modules are in `petkit.models.inserts`; README.md has
the equations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from petkit.artifacts import PackedMatrix
from petkit.data.tokens import at_targets
from petkit.models.config import AdapterConfig
from petkit.models.inserts import Site, insert, pack
from petkit.models.loaded import compute_logits
from petkit.training.evaluate import StepFunction, StepOutput


def insert_adapters(
    model: nn.Module, config: AdapterConfig, generator: torch.Generator | None = None
) -> list[Site]:
    """Freeze a model and put trainable adapters into it.

    Args:
        model: the host, changed in place; its classifier `head`, if it has one, stays trainable.
        config: method, bits, bottleneck and targets; linear_probe adds no adapter.
        generator: source of the initial weights; None uses torch's global one.

    Returns:
        The sites that now hold an adapter, in the model's order.

    Raises:
        ConfigError: a target matches nothing.
        InputError: the model already holds adapters, or no block of it is known.

    Source:
        Jie, Wang and Deng (2023), sections 3 and 4.
    """
    return insert(model, config, generator)


def pack_adapters(model: nn.Module) -> tuple[dict[str, PackedMatrix], dict[str, Tensor]]:
    """Quantise the latent weights for good: what the artifact stores.

    Args:
        model: a model with adapters, a head, or both.

    Returns:
        Packed matrices by module name, and the tensors that stay dense by full name.

    Raises:
        InputError: there is nothing to pack.

    Source:
        Jie, Wang and Deng (2023), section 3; the bits, a shift and a scale per matrix.
    """
    return pack(model)


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


def classification_step(model: nn.Module, batch: Mapping[str, Tensor]) -> StepOutput:
    """Run a classifier on one batch.

    Args:
        model: an image or text classifier.
        batch: the model's inputs and `labels` (batch,).

    Returns:
        Sums of loss and count, and which examples are right.
    """
    logits, labels = compute_logits(model, batch), batch["labels"]
    loss = classification_loss(logits, labels)
    return StepOutput(loss, len(labels), logits.detach().argmax(-1) == labels, labels)


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
