"""transformers models as frozen bases: hub names, local folders, GGUF files, tokenizers and pooling."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from petkit.artifacts.provenance import state_dict_sha256
from petkit.errors import ConfigError, InputError, MissingError, OfflineError, PetkitError, SafetyError
from petkit.models.config import ModelConfig
from petkit.models.encoder import EncoderClassifier, Pooling, accepts
from petkit.models.hub import hub_or_cache, offline_advice
from petkit.models.loaded import Kind, LoadedModel, Task, new_head, randomly_initialized
from petkit.models.own_classifier import BACKBONE, OwnClassifier, base_sha256, load_own

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
FILE_ARGUMENTS = ("revision", "local_files_only")
OFFLINE_ERRORS = ("LocalEntryNotFoundError", "OfflineModeIsEnabled")
# Tables of learned positions, by the last part of their names.
POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")
RESAMPLING = {2: "bilinear", 3: "bicubic"}


def load_transformers(
    config: ModelConfig, task: Task, num_classes: int, generator: torch.Generator | None
) -> LoadedModel:
    """Load a transformers model for a task.

    Args:
        config: `name` is hf/ORG/NAME or a local folder with config.json or one .gguf file.
        task: causal_lm keeps the model's own language head; the others get a pooled classifier.
        num_classes: Rows of the new head; 0 for none.
        generator: Source of the head's initial values.

    Returns:
        The model in float32, its tokenizer for text and its preprocessing for images.

    Raises:
        ConfigError: A configured value has no effect on this model.
        InputError: The files do not make a model for the task.
        OfflineError: A file is neither in the cache nor reachable.
        SafetyError: The weights are a pickle, or need code from the repository.
    """
    source = _Source(config)
    fetching = nullcontext() if source.folder else hub_or_cache()
    with _quiet(), source.named_errors(), fetching:
        settings = _settings(config, source)
        if config.pooling == "own":
            return _with_own_classifier(config, source, settings, task, num_classes)
        kind: Kind = "causal_lm" if task == "causal_lm" else "encoder"
        base = _load_base(config, source, settings, kind)
        tokenizer = None if task == "image_classification" else _tokenizer(source, base)
        preprocess = _preprocess(config, source, settings) if task == "image_classification" else None
    sha256 = state_dict_sha256(base.state_dict())
    model = base
    if kind == "encoder":
        model = _with_head(base, config, source, preprocess, num_classes, generator)
    revision = getattr(settings, "_commit_hash", None) or config.revision
    return LoadedModel(model, config.name, revision, sha256, kind, preprocess, tokenizer)


class _Source:
    """Where the files of a model are, and the arguments that find them."""

    def __init__(self, config: ModelConfig) -> None:
        local = not config.name.startswith("hf/")
        self.name, self.config = config.name.removeprefix("hf/"), config
        self.folder = Path(self.name).expanduser() if local else None
        self.path = str(self.folder) if self.folder else self.name
        self.arguments: dict[str, Any] = {"trust_remote_code": False}
        if config.revision is not None and not local:
            self.arguments["revision"] = config.revision
        if self.folder is not None:
            self.arguments["local_files_only"] = True
            gguf = sorted(self.folder.glob("*.gguf"))
            if gguf and not (self.folder / "config.json").exists():
                self.arguments["gguf_file"] = gguf[0].name

    @property
    def gguf(self) -> bool:
        return "gguf_file" in self.arguments

    def refuse_pickle(self) -> None:
        if self.folder is None or any(self.folder.glob("*.safetensors")) or self.gguf:
            return
        for pattern in PICKLES:
            for path in self.folder.glob(pattern):
                raise SafetyError(f"{path} is a pickle, which can run code: convert it to safetensors first")

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turn the libraries' errors into petkit's, with the model's name."""
        try:
            yield
        except PetkitError:
            raise
        except ImportError as error:
            text = " ".join(str(error).split())
            hint = 'pip install "petkit[gguf]"' if self.gguf else "install it"
            raise MissingError(
                f"model.name {self.config.name} needs another package ({text}): {hint}"
            ) from error
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, struct.error) as error:
            text = " ".join(str(error).split())
            if any(type(link).__name__ in OFFLINE_ERRORS for link in _chain(error)):
                raise OfflineError(
                    f"model.name {self.config.name}: config.json or the weights are not in the Hugging Face "
                    f"cache {offline_advice('a local folder: --base FOLDER, or model.name in a recipe')}"
                ) from error
            if "trust_remote_code" in text:
                raise SafetyError(
                    f"model.name {self.config.name} needs code from its repository: refused"
                ) from error
            raise InputError(f"model.name {self.config.name} cannot be loaded: {text[:400]}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off stderr while a model loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _settings(config: ModelConfig, source: _Source) -> Any:
    from transformers import AutoConfig

    source.refuse_pickle()
    settings = AutoConfig.from_pretrained(source.path, **source.arguments)
    if config.drop_path_rate:
        if not hasattr(settings, "drop_path_rate"):
            raise ConfigError(f"model.drop_path_rate has no effect on {config.name}: remove it")
        settings.drop_path_rate = config.drop_path_rate
    return settings


def _with_own_classifier(
    config: ModelConfig, source: _Source, settings: Any, task: Task, num_classes: int
) -> LoadedModel:
    """The whole classifier of transformers; what its files lack must come from an artifact."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    if config.weights is not None:
        raise ConfigError(
            "model.weights has no effect with model.pooling own: give a local folder as model.name"
        )
    images = task == "image_classification"
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    if num_classes:
        settings.num_labels = num_classes
    if config.pretrained:
        model, unset = load_own(
            auto.from_pretrained,
            pretrained_model_name_or_path=source.path,
            config=settings,
            dtype=torch.float32,
            use_safetensors=True,
            **source.arguments,
        )
    else:
        model = randomly_initialized(lambda: auto.from_config(settings, dtype=torch.float32))
        unset = ()
    preprocess = _preprocess(config, source, settings) if images else None
    options = _position_options(model, settings, preprocess)
    revision = getattr(settings, "_commit_hash", None) or config.revision
    return LoadedModel(
        OwnClassifier(model, options),
        config.name,
        revision,
        base_sha256(model, unset),
        "encoder",
        preprocess,
        None if images else _tokenizer(source, model),
        tuple(f"{BACKBONE}.{name}" for name in unset),
    )


def _load_base(config: ModelConfig, source: _Source, settings: Any, kind: Kind) -> nn.Module:
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if kind == "causal_lm" else AutoModel
    if not config.pretrained or config.weights is not None:
        model: nn.Module = randomly_initialized(lambda: auto.from_config(settings, dtype=torch.float32))
        _drop_pooler(model)
        if config.weights is not None:
            _load_weights(model, Path(config.weights))
        return model
    return _from_pretrained(auto.from_pretrained, source, settings)


def _from_pretrained(load: Callable[..., Any], source: _Source, settings: Any) -> nn.Module:
    options: dict[str, Any] = {"use_safetensors": True, "config": settings}
    if source.gguf:
        from transformers import GgufConfig

        options = {"quantization_config": GgufConfig(dequantize=True)}
    model, report = load(
        source.path, dtype=torch.float32, output_loading_info=True, **options, **source.arguments
    )
    _drop_pooler(model)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(
            f"model.name {source.config.name}: the weights lack {', '.join(missing[:4])}"
            f"{' and more' if len(missing) > 4 else ''}, which would stay random in a frozen base"
        )
    frozen: nn.Module = model
    return frozen


def _drop_pooler(model: nn.Module) -> None:
    """The head pools by itself; a checkpoint without a pooler would get a random one, and a new hash."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]


def _load_weights(model: nn.Module, path: Path) -> None:
    if path.suffix != ".safetensors":
        raise SafetyError(
            f"model.weights {path}: expected a .safetensors file, {path.suffix} may hold a pickle"
        )
    if not path.is_file():
        raise InputError(f"model.weights {path} is not a file")
    model.load_state_dict(load_file(path), strict=True)


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer without its model.

    Args:
        name: hf/ORG/NAME or a folder.

    Returns:
        The tokenizer.

    Raises:
        InputError: there is none.
        OfflineError: it is neither in the cache nor reachable.
        SafetyError: it needs code of its own.
    """
    from transformers import AutoTokenizer

    source = _Source(ModelConfig(name=name))
    with source.named_errors(), _quiet():
        return AutoTokenizer.from_pretrained(source.path, **source.arguments)


def _tokenizer(source: _Source, model: nn.Module) -> Any:
    """The model's tokenizer; its `model_max_length` is at most what the model has positions for."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source.path, **source.arguments)
    tokenizer.model_max_length = min([tokenizer.model_max_length, *_position_limits(model)])
    return tokenizer


def _position_limits(model: nn.Module) -> Iterator[int]:
    told = getattr(model.config, "max_position_embeddings", None)
    if isinstance(told, int) and told > 0:
        yield told
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES:
            # RoBERTa counts its positions from behind the padding token's number.
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            yield module.num_embeddings - before


def _preprocess(config: ModelConfig, source: _Source, settings: Any) -> dict[str, Any]:
    recorded = _json_file(source, "preprocessor_config.json")
    size = config.image_size or getattr(settings, "image_size", None)
    if not isinstance(size, int):
        raise ConfigError(f"model.image_size is needed: {config.name} does not tell its own")
    std = [float(value) for value in recorded.get("image_std", (0.5, 0.5, 0.5))]
    if not all(value > 0 for value in std):
        raise InputError(
            f"model.name {config.name}: preprocessor_config.json must have image_std above 0, got {std}: "
            "pixels are divided by it"
        )
    return {
        "image_size": size,
        "mean": [float(value) for value in recorded.get("image_mean", (0.5, 0.5, 0.5))],
        "std": std,
        "interpolation": RESAMPLING.get(recorded.get("resample", 3), "bicubic"),
    }


def _json_file(source: _Source, name: str) -> dict[str, Any]:
    """A small JSON file of the model, or {} where the model has none."""
    from transformers.utils import cached_file

    arguments = {key: value for key, value in source.arguments.items() if key in FILE_ARGUMENTS}
    path = cached_file(
        source.path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **arguments,
    )
    if path is None:
        return {}
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _with_head(
    backbone: nn.Module,
    config: ModelConfig,
    source: _Source,
    preprocess: Mapping[str, Any] | None,
    num_classes: int,
    generator: torch.Generator | None,
) -> EncoderClassifier:
    settings: Any = backbone.config
    images = preprocess is not None
    if images != (getattr(backbone, "main_input_name", "") == "pixel_values"):
        wanted = "images" if images else "text"
        raise InputError(
            f"model.name {config.name} is a {type(backbone).__name__}, which does not take {wanted}"
        )
    options = _position_options(backbone, settings, preprocess)
    asked = config.pooling
    pooling = _default_pooling(backbone, source) if asked is None or asked == "own" else asked
    width = int(settings.hidden_size)
    head = new_head(width, num_classes, generator) if num_classes else nn.Identity()
    return EncoderClassifier(backbone, head, pooling, options)


def _position_options(
    model: nn.Module, settings: Any, preprocess: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a call needs at another image size than the one the model was trained at."""
    resized = preprocess is not None and preprocess["image_size"] != getattr(settings, "image_size", None)
    return (
        {"interpolate_pos_encoding": True} if resized and accepts(model, "interpolate_pos_encoding") else {}
    )


def _default_pooling(backbone: nn.Module, source: _Source) -> Pooling:
    """What the architecture was trained with: a sentence encoder's own record, else by the kind of model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    recorded = _json_file(source, "1_Pooling/config.json")
    if recorded:
        return "cls" if recorded.get("pooling_mode_cls_token") else "mean"
    kind = type(backbone.config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING:
        return "last"
    if getattr(backbone, "main_input_name", "") != "pixel_values":
        return "cls"
    has_token = any(name.endswith("cls_token") for name, _ in backbone.named_parameters())
    return "cls" if has_token and not getattr(backbone.config, "use_mean_pooling", False) else "mean"
