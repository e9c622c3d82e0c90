"""What a model folder holds beside its weights: configuration and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from petkit.artifacts.reader import small_file
from petkit.artifacts.strict_json import parse_json
from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.merging.chat_templates import named_template

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
# Larger ones, of some 250,000 entries with their merges, have 33 MB.
MAX_FILE = 256 * 2**20
MODEL_FILES = (CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
TEMPLATE = "chat_template.jinja"
# What changes a model's output at the same weights.
GEOMETRY = (
    "model_type", "architectures", "num_attention_heads", "num_key_value_heads", "head_dim", "n_head",
    "hidden_act", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta",
    "rope_scaling", "rope_parameters", "sliding_window", "tie_word_embeddings", "patch_size", "image_size",
)  # fmt: skip


def companions(
    model: Path, tokenizer: Path, dtype: str | None, layers: int | None, chat_template: str | None
) -> dict[str, bytes]:
    """The files that go beside merged weights.

    Args:
        model: whose configuration it is, the base or the first model.
        tokenizer: whose tokenizer.
        dtype: of the weights; None leaves what the configuration says.
        layers: of the result, where they are stacked anew.
        chat_template: a template to put in place of the tokenizer's; None or auto keeps that.

    Returns:
        Content by file name.

    Raises:
        ArtifactError: config.json is broken.
        ConfigError: chat_template is no template and no template's name.
    """
    found = _present(model, MODEL_FILES) | _present(tokenizer, (*TOKENIZER_FILES, TEMPLATE))
    if CONFIG in found:
        found[CONFIG] = _adapted(found[CONFIG], model, dtype, layers)
    if chat_template not in (None, "auto"):
        text = str(chat_template)
        if "{{" not in text and "{%" not in text:
            text = named_template(text)
        found[TEMPLATE] = text.encode()
    return found


def unlike_configs(folders: Sequence[Path]) -> Iterator[str]:
    """Say where models of the same shapes compute other things.

    Args:
        folders: of models; those without config.json are passed over.

    Yields:
        A sentence for each model that differs from the first.
    """
    known: tuple[Path, Mapping[str, Any]] | None = None
    for folder in dict.fromkeys(folders):
        found = _present(folder, (CONFIG,))
        if CONFIG not in found:
            continue
        own = _parsed(found[CONFIG], folder)
        if known is None:
            known = (folder, own)
            continue
        pairs = ((key, known[1].get(key), own.get(key)) for key in GEOMETRY)
        differing = [f"{key} {own!r} against {first!r}" for key, first, own in pairs if own != first]
        if differing:
            yield f"{folder} is not built as {known[0]} is, whose config.json is kept: {', '.join(differing)}"


def tokenizer_folder(source: str | None, first: Path, models: Sequence[Path]) -> Path:
    """The folder whose tokenizer the result gets.

    Args:
        source: `tokenizer_source`: None, base, or a folder.
        first: the base, or the first model.
        models: every model that is merged.

    Returns:
        The folder.

    Raises:
        ConfigError: union, which would merge vocabularies, or no folder.
        InputError: nothing is said, and the tokenizers of two models differ; both are named.
    """
    if source == "union":
        raise ConfigError(
            "tokenizer_source union is not supported, since it makes new embeddings: give the models one "
            "vocabulary first"
        )
    if source not in (None, "base"):
        if not Path(str(source)).is_dir():
            raise ConfigError(f"tokenizer_source must be base or a folder, {source} is missing")
        return Path(str(source))
    if source is None:
        check_tokenizers([first, *models])
    return first


def check_tokenizers(folders: Sequence[Path]) -> None:
    """Refuse models whose tokenizers give other numbers to some token.

    Args:
        folders: of models; those without tokenizer.json are passed over.

    Raises:
        InputError: names both folders and a token.
    """
    known: tuple[Path, Mapping[str, int]] | None = None
    for folder in dict.fromkeys(folders):
        own = _vocabulary(folder)
        if own is None:
            continue
        if known is None:
            known = (folder, own)
        elif own != known[1]:
            tokens = sorted({*own, *known[1]})
            token = next(token for token in tokens if own.get(token) != known[1].get(token))
            raise InputError(
                f"{known[0]} and {folder} must have one vocabulary, token {token!r} is "
                f"{known[1].get(token)} in one and {own.get(token)} in the other; tokenizer_source: base "
                "takes the first"
            )


def _vocabulary(folder: Path) -> Mapping[str, int] | None:
    try:
        content: Any = parse_json(small_file(folder, TOKENIZER, MAX_FILE))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder / TOKENIZER} is not valid JSON: {str(error)[:200]}") from error
    vocabulary = content.get("model", {}).get("vocab", {})
    # Unigram models list pairs of piece and score, by number.
    if isinstance(vocabulary, list):
        vocabulary = {str(pair[0]): number for number, pair in enumerate(vocabulary)}
    added = {str(one["content"]): int(one["id"]) for one in content.get("added_tokens", [])}
    return {**vocabulary, **added}


def _present(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
        if (folder / name).exists():
            found[name] = small_file(folder, name, MAX_FILE)
    return found


def _parsed(raw: bytes, model: Path) -> dict[str, Any]:
    try:
        content: Any = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{model / CONFIG} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{model / CONFIG} must be a JSON object")
    return content


def _adapted(raw: bytes, model: Path, dtype: str | None, layers: int | None) -> bytes:
    content = _parsed(raw, model)
    if dtype is not None:
        content["torch_dtype" if "torch_dtype" in content else "dtype"] = dtype
    if layers is not None:
        key = next((one for one in ("num_hidden_layers", "n_layer", "num_layers") if one in content), None)
        if key is None:
            raise ArtifactError(f"{model / CONFIG} does not say how many layers there are: nothing to set")
        content[key] = layers
    return json.dumps(content, indent=2).encode() + b"\n"
