"""The pooled features of image models: with a head beside them, and together with the logits made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petkit.errors import InputError


class FeatureClassifier(nn.Module):
    """A backbone that gives pooled features, with the classifier `head`, called like any other classifier.

    Args:
        backbone: Map from images (batch, 3, height, width) to features (batch, features).
        head: Map from features to (batch, classes).
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        # timm's record of the model, from which the model card takes the licence.
        self.pretrained_cfg: Any = getattr(backbone, "pretrained_cfg", None)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width)."""
        logits: Tensor = self.head(self.backbone(pixel_values))
        return logits


def has_linear_head(model: nn.Module) -> bool:
    """Whether the model's classifier is a linear map named `head`, which another one can stand in for."""
    return isinstance(getattr(model, "head", None), (nn.Identity, nn.Linear))


@torch.inference_mode()
def feature_width(model: nn.Module, size: int) -> int:
    """Run one black image through a model without classifier, and see how wide its features are.

    Args:
        model: A map from images to features; its mode and its running statistics stay as they are.
        size: Side of the image in pixels.

    Returns:
        Number of features of one image.

    Raises:
        ValueError: The output is no matrix of one row, or the model fails; the message says how.
    """
    training = model.training
    try:
        output = model.eval()(torch.zeros(1, 3, size, size))
    # A foreign forward pass raises whatever the first operation that does not fit happens to raise.
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise ValueError(f"{type(error).__name__}: {reason:.200}") from error
    finally:
        model.train(training)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 1:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"it gives {shape} where one row of features is needed")
    return int(output.shape[1])


def logits_and_features(
    model: nn.Module, last: Sequence[nn.Module], pixel_values: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a classifier once, and see what its last layer is given.

    Args:
        model: Map from images to logits, left as it is.
        last: Its last layers, each called with pooled features; two of a model that averages two answers.
        pixel_values: (batch, 3, height, width).

    Returns:
        Logits (batch, classes) and features (batch, width), the mean over all calls of the last layers.

    Raises:
        InputError: The last layers were not called, or with something else than one row for each image.
    """
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for layer in dict.fromkeys(last)
    ]
    try:
        logits: Tensor = model(pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    rows = [features.flatten(1) for features in seen if features.shape[0] == len(pixel_values)]
    if not rows or len(rows) < len(seen) or any(row.shape != rows[0].shape for row in rows):
        shapes = [list(features.shape) for features in seen]
        raise InputError(
            f"{type(model).__name__} must give its last layer one row of features for each of "
            f"{len(pixel_values)} images, got {shapes or 'no call of it'}"
        )
    return logits, torch.stack(rows).mean(0) if len(rows) > 1 else rows[0]
