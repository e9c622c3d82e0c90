"""A timm model whose own classifier is no plain linear `head`: its pooled features, and a head beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
