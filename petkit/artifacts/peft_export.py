"""An artifact with LoRA adapters, written as a PEFT folder that computes the same."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petkit.artifacts.dense import to_float32, to_raw
from petkit.artifacts.manifest import Manifest
from petkit.artifacts.peft_config import alpha_for, parse_config, rank_of, scaling_of
from petkit.artifacts.peft_lora import BACKBONE, CONFIG_FILE, PREFIX, TASKS, TENSOR_FILE
from petkit.artifacts.reader import Artifact
from petkit.artifacts.tensor_file import RawTensor, serialize_tensor_file
from petkit.errors import InputError

HEAD_FILE = "head.safetensors"
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Export:
    """A PEFT adapter ready to be written.

    Args:
        config: content of `adapter_config.json`.
        tensors: content of `adapter_model.safetensors`.
        head: content of `head.safetensors`, when PEFT's base model is a backbone without a classifier.
        paths: path of each layer in petkit's model to its path in PEFT's.
        notes: what the user should know: what was dequantised or rewritten.
    """

    config: dict[str, Any]
    tensors: dict[str, RawTensor]
    head: dict[str, RawTensor]
    paths: dict[str, str]
    notes: tuple[str, ...]

    def files(self) -> dict[str, bytes]:
        """Return the files of the folder by name."""
        text = json.dumps(self.config, indent=2, sort_keys=True) + "\n"
        files = {
            CONFIG_FILE: text.encode(),
            TENSOR_FILE: serialize_tensor_file(self.tensors, {"format": "pt"}),
        }
        if self.head:
            files[HEAD_FILE] = serialize_tensor_file(self.head, {"format": "pt"})
        return files


class _Layer(NamedTuple):
    down: Array
    up: Array
    scaling: float


def export_adapter(artifact: Artifact) -> Export:
    """Write a LoRA artifact as a PEFT adapter that computes the same.

    Args:
        artifact: with adapters of any number of bits, which PEFT gets as float32.

    Returns:
        Files and notes.

    Raises:
        InputError: PEFT's LoRA cannot express the artifact; the message says why.
    """
    manifest = artifact.manifest
    method = manifest.adapter.get("method")
    if method != "lora":
        raise InputError(
            f"PEFT cannot hold this {method} adapter: its LoRA is beside one linear layer, without activation"
        )
    source = manifest.source.settings if manifest.source and manifest.source.format == "peft" else {}
    weights = dict(_weights(artifact))
    hosts = dict(_layers(artifact, weights))
    layers = {_peft_path(path, source.get("prefix")): layer for path, layer in hosts.items()}
    bare = not source and layers.keys() != hosts.keys()
    head = {name: weights.pop(name) for name in list(weights) if bare and name.startswith("head.")}
    saved = {_peft_name(name, source): array for name, array in weights.items()}
    config = _kept_config(source, layers) or _new_config(
        manifest, layers, saved, source.get("adapter_config") or {}, bool(head)
    )
    dtype = "F32" if artifact.packed else str(source.get("dtype"))
    tensors = _named(layers, saved, dtype)
    notes = tuple(_notes(artifact, source, config, bool(head)))
    paths = dict(zip(hosts, layers, strict=True))
    return Export(config, tensors, {name: to_raw(array) for name, array in head.items()}, paths, notes)


def _peft_path(host: str, prefix: str | None) -> str:
    """Return a layer's path in PEFT's model: a bare backbone, or the model that the adapter came from."""
    path = host.removeprefix(f"{BACKBONE}.")
    return f"{prefix}.{path}" if prefix and path != host else path


def _peft_name(name: str, source: Mapping[str, Any]) -> str:
    """Return the name of a saved tensor in PEFT's model, where the classifier may be called otherwise."""
    if source.get("prefix") == "":
        return name.removeprefix(f"{BACKBONE}.")
    head = source.get("head")
    return f"{head}.{name.removeprefix('head.')}" if head and name.startswith("head.") else name


def _weights(artifact: Artifact) -> Iterator[tuple[str, Array]]:
    for module, matrix in artifact.packed.items():
        yield f"{module}.weight", matrix.dequantize()
        if module == "head":
            # The binary head has no bias; PEFT replaces a head that has one, so it must be zero.
            yield "head.bias", np.zeros(matrix.shape[0], np.float32)
    for name, raw in artifact.raw_dense.items():
        yield name, to_float32(raw)


def _layers(artifact: Artifact, weights: dict[str, Array]) -> Iterator[tuple[str, _Layer]]:
    """Take the adapters out of the weights: one LoRA for each linear layer."""
    fused: dict[str, dict[str, _Layer]] = {}
    for name in [name for name in weights if name.endswith(".down.weight")]:
        site = name.removesuffix(".down.weight")
        layer = _Layer(
            weights.pop(name), weights.pop(f"{site}.up.weight"), artifact.manifest.scaling_of(site)
        )
        path, _, kind = site.rpartition(".")
        if kind == "lora":
            yield path, layer
        elif kind in ("lora_q", "lora_k", "lora_v"):
            fused.setdefault(path, {})[kind[-1]] = layer
        else:
            raise InputError(f"PEFT cannot hold the adapter {site}: it is not LoRA beside a linear layer")
    for path, parts in fused.items():
        yield path, _fuse(path, parts)


def _fuse(path: str, parts: Mapping[str, _Layer]) -> _Layer:
    """Put the adapters of q, k and v of a fused layer into one of the summed rank, in blocks; exact."""
    order = [part for part in "qkv" if part in parts]
    widths = {parts[part].up.shape[0] for part in order}
    scalings = {parts[part].scaling for part in order}
    if len(widths) != 1 or len(scalings) != 1:
        raise InputError(
            f"PEFT cannot hold the adapters of {path} as one: widths {widths}, scalings {scalings} differ"
        )
    width, rank = widths.pop(), sum(parts[part].down.shape[0] for part in order)
    up, column = np.zeros((3 * width, rank), np.float32), 0
    for part in order:
        row, size = "qkv".index(part) * width, parts[part].down.shape[0]
        up[row : row + width, column : column + size] = parts[part].up
        column += size
    return _Layer(np.concatenate([parts[part].down for part in order]), up, scalings.pop())


def _kept_config(source: Mapping[str, Any], layers: Mapping[str, _Layer]) -> dict[str, Any] | None:
    """Return the configuration that the adapter came with, if it still tells ranks and factors rightly."""
    config = source.get("adapter_config")
    if not isinstance(config, dict):
        return None
    parse_config(json.dumps(config).encode(), "the artifact's adapter_config")
    fits = all(
        rank_of(config, path) == len(layer.down) and scaling_of(config, path) == layer.scaling
        for path, layer in layers.items()
    )
    return dict(config) if fits else None


def _new_config(
    manifest: Manifest,
    layers: Mapping[str, _Layer],
    saved: Mapping[str, Array],
    source: Mapping[str, Any],
    apart: bool,
) -> dict[str, Any]:
    ranks = {path: len(layer.down) for path, layer in layers.items()}
    alphas = {path: alpha_for(layer.scaling, ranks[path]) for path, layer in layers.items()}
    rank, alpha = max(ranks.values()), max(alphas.values())
    task = manifest.task.type if manifest.task else None
    kept = {key: source[key] for key in ("task_type", "auto_mapping", "fan_in_fan_out") if key in source}
    return {
        "peft_type": "LORA",
        "task_type": _task_type(task, apart),
        "base_model_name_or_path": manifest.base.id.removeprefix("hf/"),
        "revision": manifest.base.revision,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        "lora_dropout": float(manifest.adapter.get("dropout", 0.0)),
        "target_modules": sorted(layers),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in saved}) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
        **kept,
    }


def _task_type(task: str | None, apart: bool) -> str | None:
    """PEFT's name of a task. A bare backbone reads texts into features; of pictures PEFT knows no task."""
    if apart and task == "text_classification":
        return "FEATURE_EXTRACTION"
    return {task: name for name, task in TASKS.items()}.get(str(task))


def _named(layers: Mapping[str, _Layer], saved: Mapping[str, Array], dtype: str) -> dict[str, RawTensor]:
    arrays = {f"{PREFIX}{name}": array for name, array in saved.items()}
    for path, layer in layers.items():
        arrays[f"{PREFIX}{path}.lora_A.weight"] = layer.down
        arrays[f"{PREFIX}{path}.lora_B.weight"] = layer.up
    return {name: _as_dtype(array, dtype) for name, array in arrays.items()}


def _as_dtype(array: Array, dtype: str) -> RawTensor:
    """Return the array in the dtype it had before it was widened to float32, if that loses nothing."""
    if dtype == "F16" and np.array_equal(array.astype(np.float16).astype(np.float32), array):
        return to_raw(array.astype(np.float16))
    words = np.ascontiguousarray(array).view(np.uint32)
    if dtype == "BF16" and not (words & np.uint32(0xFFFF)).any():
        halves = (words >> np.uint32(16)).astype(np.uint16)
        return RawTensor("BF16", array.shape, halves.reshape(-1).view(np.uint8))
    return to_raw(array)


def _notes(
    artifact: Artifact, source: Mapping[str, Any], config: Mapping[str, Any], apart: bool
) -> Iterator[str]:
    if artifact.packed:
        bits = " and ".join(str(one) for one in sorted({matrix.bits for matrix in artifact.packed.values()}))
        size = sum(math.prod(matrix.shape) * 4 for matrix in artifact.packed.values())
        yield f"{bits}-bit weights are written dequantised, in {size:,} bytes of float32: PEFT packs none"
    if "head" in artifact.packed:
        yield "the binary head is written as float32 with a bias of zeros"
    if apart:
        yield (
            f"PEFT's base is the bare backbone (AutoModel), so the classifier is apart, in {HEAD_FILE}: a "
            "linear map on the pooled features, see docs/serving.md"
        )
    if source and config != source.get("adapter_config"):
        yield "the original adapter_config.json no longer fits and was written anew"
    if any(".lora_" in module for module in (*artifact.packed, *artifact.raw_dense)):
        yield "q, k and v of a fused layer are written as one LoRA whose up matrix is made of blocks"
