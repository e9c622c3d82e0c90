"""The output of a model folder on a batch that is always the same: copies of a model agree in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petkit.artifacts.reader import small_file
from petkit.artifacts.strict_json import parse_json
from petkit.errors import InputError

ROWS, TOKENS = 2, 16
MAX_CONFIG = 16 * 2**20


def fixed_output(folder: Path, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """What a model says to the fixed batch.

    Args:
        folder: of transformers, or of timm, with a config.json; nothing is downloaded and no code of it runs.
        state: weights to take in the place of the folder's.

    Returns:
        float32: the logits, or else the last hidden states.

    Raises:
        InputError: config.json says of no model what it is, or weights do not fit.
    """
    content = _config(folder)
    torch.manual_seed(0)
    model = _of_timm(content, folder, state) if "architecture" in content else _of_transformers(folder, state)
    model.eval().float()
    with torch.inference_mode():
        output: Any = model(**_batch(model, content))
    first = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return (output[0] if first is None else first).float().clone()


def _config(folder: Path) -> Any:
    try:
        return parse_json(small_file(folder, "config.json", MAX_CONFIG))
    except FileNotFoundError:
        raise InputError(f"{folder} has no config.json, which would say what model it is") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / 'config.json'} is not valid JSON: {str(error)[:200]}") from error


def _of_transformers(folder: Path, state: Mapping[str, Tensor] | None) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, transformers.AutoModel)
    if state is None:
        loaded, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        _check(sorted(report["missing_keys"]), sorted(report["unexpected_keys"]), folder)
        return loaded  # type: ignore[no-any-return]
    # Through the same door, so that names are mapped alike.
    loaded = kind.from_pretrained(None, config=config, state_dict=dict(state))
    return loaded  # type: ignore[no-any-return]


def _of_timm(content: Mapping[str, Any], folder: Path, state: Mapping[str, Tensor] | None) -> nn.Module:
    import timm
    from safetensors.torch import load_file

    # Timm writes the number of classes in both places.
    settings = {"num_classes": content.get("num_classes", 0), **(content.get("model_args") or {})}
    model: nn.Module = timm.create_model(content["architecture"], pretrained=False, **settings)
    found = load_file(folder / "model.safetensors") if state is None else state
    report = model.load_state_dict(dict(found), strict=False)
    _check(sorted(report.missing_keys), sorted(report.unexpected_keys), folder)
    return model


def _check(missing: list[str], unexpected: list[str], folder: Path) -> None:
    if missing or unexpected:
        what = [f"lacks {', '.join(missing[:3])}"] if missing else []
        what += [f"has {', '.join(unexpected[:3])} too"] if unexpected else []
        raise InputError(
            f"the model that config.json of {folder} describes does not fit: it {'; '.join(what)}"
        )


def _batch(model: nn.Module, content: Mapping[str, Any]) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    name = getattr(model, "main_input_name", "x")
    if name == "input_ids":
        vocabulary = int(getattr(model.config, "vocab_size", 0))
        return {name: torch.randint(0, vocabulary, (ROWS, TOKENS), generator=source)}
    if name not in ("pixel_values", "x"):
        raise InputError(f"{type(model).__name__} reads {name}: its logits cannot be checked")
    config = getattr(model, "config", None)
    cfg = content.get("pretrained_cfg") or {}
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    if config is not None:
        channels, height = getattr(config, "num_channels", 3), getattr(config, "image_size", 224)
        width = height
    shape = getattr(getattr(model, "patch_embed", None), "img_size", None) or (height, width)
    return {name: torch.randn(ROWS, channels, *shape, generator=source)}
