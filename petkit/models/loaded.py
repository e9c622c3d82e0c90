"""What loading a base model gives, the start of its new head, and one way to ask any model for logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from petkit.models.projections import initialize_linear

Kind = Literal["timm", "encoder", "causal_lm"]
Task = Literal["image_classification", "text_classification", "causal_lm"]
Made = TypeVar("Made")


@dataclass(frozen=True)
class LoadedModel:
    """A base model in float32 on the CPU, not yet frozen, with a new head named `head` (causal LMs have
    none).

    `base_sha256` is of the base's own weights, without the head and before any change of the input size,
    so that one base has one hash at every image size. `preprocess` holds image_size, mean, std and
    interpolation for image models.
    """

    model: nn.Module
    base_id: str
    revision: str | None
    base_sha256: str
    kind: Kind
    preprocess: dict[str, Any] | None = None
    tokenizer: Any | None = None
    unset: tuple[str, ...] = ()


def new_head(in_features: int, classes: int, generator: torch.Generator | None) -> nn.Linear:
    """A float32 classifier with torch's default initial values, from the given generator.

    Args:
        in_features: Width of the pooled features.
        classes: Number of classes, at least 1.
        generator: Source of the numbers; None uses torch's global one.

    Returns:
        The linear map with weight (classes, in_features) and bias (classes,).
    """
    head = nn.Linear(in_features, classes)
    initialize_linear(head.weight, in_features, generator)
    initialize_linear(head.bias, in_features, generator)
    return head


def randomly_initialized(make: Callable[[], Made]) -> Made:
    """Run a constructor with a fixed seed, and leave the global generator as it was.

    Args:
        make: Constructor that draws initial weights from torch's global generator.

    Returns:
        What it made: the same weights in every process, so that an artifact of a random base can be loaded
            again.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def compute_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Run a model on a collated batch, whatever its kind.

    Args:
        model: An image classifier, an encoder with a head, or a causal LM.
        batch: `pixel_values` (batch, 3, height, width), or `input_ids` and `attention_mask` (batch,
            tokens); `labels` are left aside.

    Returns:
        Logits (batch, classes), or (batch, tokens, vocab) of a causal LM.
    """
    if "pixel_values" in batch:
        output = model(batch["pixel_values"])
    else:
        output = model(**{name: value for name, value in batch.items() if name != "labels"})
    logits = output if isinstance(output, Tensor) else output.logits
    return logits
