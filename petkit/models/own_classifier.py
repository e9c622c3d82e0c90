"""A transformers classifier with every layer of its own, the one that adapters made with PEFT sit in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from petkit.artifacts.provenance import state_dict_sha256

BACKBONE = "backbone"


class OwnClassifier(nn.Module):
    """Calls a transformers `...ForSequenceClassification` or `...ForImageClassification` for its logits.

    petkit's own head is one linear map on pooled features. BERT's classifier has a pooler before it,
    RoBERTa's a hidden layer: an adapter that was trained with those is only right with those.

    Args:
        backbone: The whole model; its paths begin with `backbone.` here.
        options: Further keyword arguments of every call.
    """

    def __init__(self, backbone: nn.Module, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.backbone, self.options = backbone, dict(options or {})

    def forward(self, pixel_values: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width), or of `input_ids` and their mask."""
        if pixel_values is not None:
            inputs = {**inputs, "pixel_values": pixel_values}
        logits: Tensor = self.backbone(**inputs, **self.options).logits
        return logits


def load_own(load: Callable[..., Any], **arguments: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """Load a classifier whose last layers the base's files need not have.

    Args:
        load: `from_pretrained` of an automatic class of transformers.
        arguments: What it takes.

    Returns:
        The model, and the names of its tensors that the files lack or have in another size: whoever uses
        the model must fill them, they are random.
    """
    model, report = load(output_loading_info=True, ignore_mismatched_sizes=True, **arguments)
    mismatched = (entry[0] for entry in report["mismatched_keys"])
    return model, tuple(sorted({*report["missing_keys"], *mismatched}))


def base_sha256(model: nn.Module, unset: Collection[str]) -> str:
    """The hash of the model below its classifier: the same, whatever classifier the base's files hold.

    Args:
        model: A transformers classifier.
        unset: Names that its files do not give.

    Returns:
        Hexadecimal SHA-256.
    """
    prefix = f"{model.base_model_prefix}."
    below = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
    return state_dict_sha256({key: value for key, value in below.items() if key not in unset})
