"""timm image models as frozen bases: names, local weight files, image size and the hash of the weights."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from petkit.artifacts.provenance import state_dict_sha256
from petkit.errors import ConfigError, InputError, OfflineError, SafetyError
from petkit.models.config import ModelConfig
from petkit.models.features import FeatureClassifier, feature_width, has_linear_head
from petkit.models.hub import hub_or_cache, offline_advice
from petkit.models.inserts import base_state, set_head
from petkit.models.loaded import LoadedModel, new_head, randomly_initialized

# An architecture, and perhaps a pretrained tag after a point: no path, no address.
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?")


def load_timm(
    config: ModelConfig,
    num_classes: int,
    generator: torch.Generator | None,
    state: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> LoadedModel:
    """Load a timm model with a new head.

    Args:
        config: `name` is timm/NAME, with or without a pretrained tag.
        num_classes: Rows of the new head; 0 leaves the features.
        generator: Source of the head's initial values.
        state: Weights to use instead of the published ones; names as in timm.
        options: Further keyword arguments of `timm.create_model`.

    Returns:
        The model at the configured image size; inside a FeatureClassifier where its own classifier is no
        linear map named `head`.

    Raises:
        ConfigError: The name is unknown, or the model cannot take a configured value.
        InputError: The weight file does not fit, or the model gives no pooled features.
        OfflineError: The published weights are not in the cache and cannot be fetched.
        SafetyError: The weight file is a pickle.
    """
    name = config.name.removeprefix("timm/")
    _check_name(name, config.name)
    if config.pooling is not None:
        raise ConfigError("model.pooling has no effect on timm models: remove it")
    model = _create(name, config, state is None, options)
    if state is not None:
        _load_strictly(model, state, config.name)
    elif config.weights is not None:
        _load_weights(model, Path(config.weights))
    sha256 = state_dict_sha256(_own_state(model))
    preprocess = _preprocess(model, config)
    _set_image_size(model, config, preprocess)
    width = _feature_width(model, config, preprocess["image_size"])
    head = new_head(width, num_classes, generator) if num_classes else nn.Identity()
    return LoadedModel(_with_head(model, head), config.name, config.revision, sha256, "timm", preprocess)


def load_timm_classifier(config: ModelConfig) -> LoadedModel:
    """Load a timm model with the classifier that its weights have.

    Args:
        config: As of `load_timm`; `weights` is a .safetensors file with the classifier in it.

    Returns:
        The model at the configured image size, as timm made it; the hash is of all its weights.

    Raises:
        ConfigError, InputError, OfflineError, SafetyError: As `load_timm`; the file lacks the classifier.
    """
    name = config.name.removeprefix("timm/")
    _check_name(name, config.name)
    # The number of classes that timm's record of the weights has.
    model = _create(name, config, True, {"num_classes": None})
    if config.weights is not None:
        _load_with_classifier(model, _weight_file(Path(config.weights)), config.weights)
    sha256 = state_dict_sha256(model.state_dict())
    preprocess = _preprocess(model, config)
    _set_image_size(model, config, preprocess)
    return LoadedModel(model, config.name, config.revision, sha256, "timm", preprocess)


def _load_with_classifier(model: Any, state: Mapping[str, Tensor], source: str) -> None:
    rows = {
        len(state[name]) for key in _classifier_names(model) for name in (f"{key}weight",) if name in state
    }
    if len(rows) != 1:
        raise InputError(
            f"model.weights {source} must hold the classifier of {type(model).__name__}, it does not"
        )
    model.reset_classifier(rows.pop())
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"{source} does not fit {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error


def _check_name(name: str, given: str) -> None:
    if NAME_PATTERN.fullmatch(name):
        return
    hint = _suggest(name.rpartition("/")[2])
    organisation, _, rest = name.partition("/")
    if NAME_PATTERN.fullmatch(organisation) and NAME_PATTERN.fullmatch(rest) and organisation != "timm":
        hint = f"; did you mean hf/{name}?"
    raise ConfigError(f"model.name must be timm/NAME with one of timm's own names, got {given!r}{hint}")


def _own_state(model: nn.Module) -> Mapping[str, Tensor]:
    """The weights without the classifier; a head that is more than that keeps its norms, which are base."""
    return base_state(model) if has_linear_head(model) else model.state_dict()


def _feature_width(model: nn.Module, config: ModelConfig, size: int) -> int:
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(model, VisionTransformer):
        return int(model.num_features)
    try:
        return feature_width(model, size)
    except ValueError as error:
        if config.image_size is not None:
            raise ConfigError(
                f"model.image_size {size}: {config.name} cannot take it, remove the key ({error})"
            ) from error
        raise InputError(
            f"model.name {config.name}: petkit trains a linear head on pooled features, and this model does "
            f"not give them ({error}): take a ViT, or its version for transformers (hf/ORG/NAME)"
        ) from error


def _with_head(model: nn.Module, head: nn.Module) -> nn.Module:
    """Put the head in, or beside a model whose own one has another name or is more than a linear map."""
    if not has_linear_head(model):
        return FeatureClassifier(model, head)
    set_head(model, head)
    return model


def _create(name: str, config: ModelConfig, published: bool, options: Mapping[str, Any]) -> nn.Module:
    import timm

    options = {"num_classes": 0, **options}
    if config.drop_path_rate:
        options["drop_path_rate"] = config.drop_path_rate
    pretrained = published and config.pretrained and config.weights is None
    if pretrained:
        options["pretrained_cfg_overlay"] = _published_file(name, config)
    try:
        with warnings.catch_warnings(), hub_or_cache() if pretrained else nullcontext():
            # Renamed models (the paper's vit_base_patch16_224_in21k) load under their new name and say so.
            warnings.filterwarnings("ignore", message="Mapping deprecated model name")
            model: nn.Module = randomly_initialized(
                lambda: timm.create_model(name, pretrained=pretrained, **options)
            )
    except FileNotFoundError as error:
        where = f" of {options['pretrained_cfg_overlay'].get('hf_hub_id', name)}" if pretrained else ""
        raise OfflineError(
            f"model.name {config.name}: the file model.safetensors{where} is not in the Hugging Face cache "
            f"{offline_advice('a local file: --base FILE, or model.weights in a recipe')}"
        ) from error
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"model.name {config.name}: its safetensors file cannot be had: {reason}") from error
    except TypeError as error:
        raise ConfigError(f"model.name {config.name} does not take a configured value: {error}") from error
    except RuntimeError as error:
        raise ConfigError(f"model.name {config.name}: {error}{_suggest(name)}") from error
    return model


def _published_file(name: str, config: ModelConfig) -> dict[str, str]:
    """Name the safetensors file and the revision: left to itself, timm may fall back to a pickle."""
    import timm

    known: Any = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        if config.revision is not None:
            raise ConfigError(
                f"model.revision has no effect on {config.name}, which is not on the hub: remove it"
            )
        return {}
    revision = f"@{config.revision}" if config.revision else ""
    file = (known.hf_hub_filename or "model").rpartition(".")[0] or "model"
    return {
        "hf_hub_id": f"{known.hf_hub_id}{revision}",
        "hf_hub_filename": f"{file.replace('pytorch_model', 'model')}.safetensors",
    }


def _suggest(name: str) -> str:
    import timm

    names = timm.list_models() + timm.list_pretrained()
    # Who writes vit_tiny means vit_tiny_patch16_224, and not gcvit_tiny, which has more letters in common.
    longer = sorted((full for full in names if len(name) > 2 and full.startswith(name)), key=len)
    close = longer or difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean timm/{close[0]}?" if close else "`petkit list models 'vit*'` lists the names"
    return f"; {hint}"


def _load_weights(model: nn.Module, path: Path) -> None:
    if path.suffix == ".npz" and path.is_file():
        # timm's reader of the JAX checkpoints uses np.load, which refuses pickled members.
        model.load_pretrained(str(path))  # type: ignore[operator]
    else:
        _load_strictly(model, _weight_file(path, ".safetensors or .npz"), str(path))


def _weight_file(path: Path, kinds: str = ".safetensors") -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"model.weights {path} is not a file")
    if path.suffix != ".safetensors":
        raise SafetyError(f"model.weights {path}: expected a {kinds} file, {path.suffix} may hold a pickle")
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise InputError(f"model.weights {path} is damaged: {error}") from error
    return state


def _load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    classifiers = _classifier_names(model)
    own = {key: value for key, value in state.items() if not key.startswith(classifiers)}
    try:
        model.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"{source} does not fit {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Starts of the names of the published classifier's weights, which are left aside."""
    if has_linear_head(model):
        return "head.", "head_dist."
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))


def _preprocess(model: nn.Module, config: ModelConfig) -> dict[str, Any]:
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(model)
    return {
        "image_size": config.image_size or int(data["input_size"][-1]),
        "mean": [float(value) for value in data["mean"]],
        "std": [float(value) for value in data["std"]],
        "interpolation": "bicubic" if data["interpolation"] == "bicubic" else "bilinear",
    }


def _set_image_size(model: nn.Module, config: ModelConfig, preprocess: Mapping[str, Any]) -> None:
    """Resample the position embedding once, here, so that the hash above is of the published weights."""
    size = preprocess["image_size"]
    native = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if native is None or tuple(native) == (size, size):
        return
    if not hasattr(model, "set_input_size"):
        raise ConfigError(
            f"model.image_size {size}: {config.name} has a fixed size of {native[0]}: remove the key"
        )
    patch = model.patch_embed.patch_size[0]  # type: ignore[union-attr,index]
    if size % patch:
        raise ConfigError(
            f"model.image_size must be a multiple of the patch size {patch} of {config.name}, got {size}"
        )
    model.set_input_size(img_size=(size, size))  # type: ignore[operator]
