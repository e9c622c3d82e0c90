"""PEFT's `adapter_config.json`: what petkit keeps, what it refuses by name, and each layer's factor."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from petkit.artifacts.strict_json import parse_json
from petkit.errors import ArtifactError, InputError

# Read here, or kept and written back; none of the others may hold anything.
KEPT = {
    "peft_type", "task_type", "bias", "fan_in_fan_out", "use_rslora", "lora_dropout", "init_lora_weights",
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "modules_to_save",
    "exclude_modules", "layers_to_transform", "layers_pattern", "eva_config", "base_model_name_or_path",
    "revision", "auto_mapping", "peft_version", "inference_mode", "runtime_config",
    # These two hold a value even when their feature is off.
    "megatron_core", "qalora_group_size",
}  # fmt: skip
# These starts leave the base model's weights alone; the others (PiSSA, OLoRA, CorDA, LoftQ, ...) change them.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
NAMES = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with bias",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA on bare parameters",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QA-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "use_bdlora": "block-diagonal LoRA",
    "velora_config": "VeLoRA",
    "ensure_weight_tying": "tied adapters",
}
MAX_PATTERN = 256
MAX_REPEATS = 3


def parse_config(raw: bytes, where: str) -> dict[str, Any]:
    """Return an `adapter_config.json` that petkit can keep whole.

    Args:
        raw: the file's bytes.
        where: its name, for messages.

    Returns:
        The configuration as it is.

    Raises:
        ArtifactError: it is not a JSON object with usable r and lora_alpha.
        InputError: it uses a PEFT method or feature that petkit cannot keep; the message names it.
    """
    try:
        config = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{where} must hold a JSON object, got {type(config).__name__}")
    method = config.get("peft_type")
    if method != "LORA":
        raise InputError(f"{where}: petkit reads PEFT's LORA, it cannot keep the method {str(method)[:40]}")
    _refuse_features(config, where)
    _check_values(config, where)
    return config


def _refuse_features(config: Mapping[str, Any], where: str) -> None:
    if config.get("bias", "none") != "none":
        raise InputError(f"{where}: petkit cannot keep bias={config['bias']!r}, only LoRA with bias='none'")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise InputError(
            f"{where}: petkit cannot keep init_lora_weights={start!r}, which changes the base model: "
            "save it with PEFT's path_initial_model_for_weight_conversion first"
        )
    for key, value in config.items():
        if key not in KEPT and value not in (None, False, "", [], {}):
            name = f"{NAMES[key]} ({key})" if key in NAMES else key
            raise InputError(
                f"{where}: petkit cannot keep {name}={json.dumps(value)[:60]}; convert plain LoRA"
            )


def _check_values(config: Mapping[str, Any], where: str) -> None:
    ranks = {"r": config.get("r"), **_pattern(config, "rank_pattern", where)}
    alphas = {"lora_alpha": config.get("lora_alpha"), **_pattern(config, "alpha_pattern", where)}
    for key, value in ranks.items():
        if type(value) is not int or value < 1:
            raise ArtifactError(
                f"{where}: {key} must be a whole number of at least 1, got {str(value)[:40]!r}"
            )
    for key, value in alphas.items():
        if not _is_positive(value):
            raise ArtifactError(f"{where}: {key} must be a number above 0, got {str(value)[:40]!r}")
    dropout = config.get("lora_dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise ArtifactError(
            f"{where}: lora_dropout must be a number from 0 to below 1, got {str(dropout)[:40]!r}"
        )
    modules = config.get("modules_to_save") or []
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ArtifactError(f"{where}: modules_to_save must be a list of names, got {str(modules)[:40]!r}")
    for key in (*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())):
        _check_pattern(key, where)


def _pattern(config: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise ArtifactError(f"{where}: {name} must be an object, got {str(pattern)[:40]!r}")
    return {f"{name}[{key!r}]": value for key, value in pattern.items()}


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _check_pattern(pattern: str, where: str) -> None:
    """Refuse a regular expression that could take for ever: it comes from a file that nobody checked."""
    repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
        raise ArtifactError(
            f"{where}: the pattern {pattern[:80]!r} is too complex: at most {MAX_PATTERN} characters and "
            f"{MAX_REPEATS} repetitions, none of a group"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ArtifactError(f"{where}: {pattern[:80]!r} is not a regular expression: {error}") from error


def rank_of(config: Mapping[str, Any], layer: str) -> int:
    """Return the rank that the configuration gives a layer."""
    return int(_matched(config.get("rank_pattern") or {}, layer, config["r"]))


def scaling_of(config: Mapping[str, Any], layer: str) -> float:
    """Return the factor on a layer's output.

    Args:
        config: a checked `adapter_config.json`.
        layer: dotted path of the linear layer in the base model.

    Returns:
        alpha / r, or alpha / sqrt(r) with rsLoRA.

    Source: Hu et al. 2021 (arXiv 2106.09685); Kalajdzievski 2023 (arXiv 2312.03732) for rsLoRA.
    """
    rank = rank_of(config, layer)
    alpha = _matched(config.get("alpha_pattern") or {}, layer, config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _matched(pattern: Mapping[str, Any], layer: str, default: Any) -> Any:
    # PEFT matches a key as a regular expression at the end of the path, after a dot; the first match counts.
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def alpha_for(scaling: float, rank: int) -> float:
    """Return the alpha whose quotient by the rank is the scaling, to the last bit where there is one."""
    alpha = scaling * rank
    nearby = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, 0.0))
    found = next((candidate for candidate in nearby if candidate / rank == scaling), alpha)
    return int(found) if found == int(found) else found
