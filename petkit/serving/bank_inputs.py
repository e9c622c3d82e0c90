"""What a bank refuses to compute on: inputs that its base would misread or stumble over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from petkit.data.tokens import padding_token
from petkit.errors import InputError
from petkit.models.loaded import LoadedModel

DTYPES = {"pixel_values": torch.float32, "input_ids": torch.int64}


def check_inputs(base: LoadedModel, batch: Mapping[str, Tensor]) -> None:
    """Refuse a batch that does not fit the base.

    Args:
        base: the loaded model.
        batch: `pixel_values`, or `input_ids` and perhaps `attention_mask`.

    Raises:
        InputError: another dtype or shape, more tokens than the model takes, tokens that it does not know, or
            padded texts without their mask.
    """
    for name, wanted in DTYPES.items():
        if name in batch and getattr(batch[name], "dtype", None) != wanted:
            got = getattr(batch[name], "dtype", type(batch[name]).__name__)
            raise InputError(f"{name} must be a tensor of {wanted}, got {got}: convert it first")
    name = "input_ids" if base.preprocess is None else "pixel_values"
    if name not in batch:
        raise InputError(f"inputs must hold {name} for this base, got {', '.join(batch) or 'nothing'}")
    if base.preprocess is None:
        _check_texts(base, batch)
    else:
        _check_pictures(base.preprocess["image_size"], tuple(batch[name].shape))


def _check_pictures(size: int, shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1:] != (3, size, size):
        raise InputError(f"pixel_values must have shape (batch, 3, {size}, {size}), got {shape}")


def _check_texts(base: LoadedModel, batch: Mapping[str, Tensor]) -> None:
    tokenizer: Any = base.tokenizer
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    shape, longest, known = tuple(ids.shape), int(tokenizer.model_max_length), _vocabulary(base.model)
    if len(shape) != 2:
        raise InputError(f"input_ids must have shape (batch, tokens), got {shape}")
    if shape[1] > longest:
        raise InputError(f"input_ids must have at most {longest} tokens for this base, got {shape[1]}")
    if mask is not None and tuple(mask.shape) != shape:
        raise InputError(f"attention_mask must have shape {shape} as input_ids, got {tuple(mask.shape)}")
    if not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (known is not None and high >= known):
        raise InputError(f"input_ids must be tokens from 0 to {known}, got {low if low < 0 else high}")
    padding = padding_token(tokenizer)
    if mask is None and len(ids) > 1 and bool((ids[:, -1] == padding).any()):
        raise InputError(
            f"inputs must hold attention_mask where texts are padded, got rows that end in the padding token "
            f"{padding} without one"
        )


def _vocabulary(model: nn.Module) -> int | None:
    backbone: Any = getattr(model, "backbone", model)
    embeddings = backbone.get_input_embeddings() if hasattr(backbone, "get_input_embeddings") else None
    return getattr(embeddings, "num_embeddings", None)
