"""A transformers encoder with a pooled classification head, called like any other classifier."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

Pooling = Literal["cls", "mean", "last"]


def pool(hidden: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """One feature vector per sequence.

    Args:
        hidden: Last hidden states (batch, tokens, features).
        mask: 1 for tokens and 0 for padding (batch, tokens), padding on either side; None when all are
            tokens.
        pooling: cls takes the first token, mean the average of the tokens, last the last token.

    Returns:
        Features (batch, features).
    """
    if pooling == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1) if pooling == "mean" else hidden[:, -1]
    if pooling == "mean":
        weights = mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * positions).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


class EncoderClassifier(nn.Module):
    """A transformers backbone, pooled, with the classifier `head`.

    Args:
        backbone: Model whose output has `last_hidden_state`.
        head: Map from (batch, features) to (batch, classes).
        pooling: As in `pool`.
        options: Further keyword arguments of every call of the backbone.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, pooling: Pooling, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.pooling = backbone, head, pooling
        self.options = dict(options or {})

    def forward(self, pixel_values: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width), or of `input_ids` and their mask."""
        if pixel_values is not None:
            inputs = {**inputs, "pixel_values": pixel_values}
        hidden = self.backbone(**inputs, **self.options).last_hidden_state
        logits: Tensor = self.head(pool(hidden, inputs.get("attention_mask"), self.pooling))
        return logits

    def extra_repr(self) -> str:
        """Show the pooling in the module's repr."""
        return f"pooling={self.pooling}"


def accepts(backbone: nn.Module, argument: str) -> bool:
    """Whether the backbone's forward has a parameter of that name."""
    return argument in inspect.signature(backbone.forward).parameters
