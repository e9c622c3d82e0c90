"""PEFT's LoRA folders (`adapter_config.json`, `adapter_model.safetensors`), read into an artifact."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petkit.artifacts.dense import to_float32
from petkit.artifacts.manifest import Base, Manifest, Source, Task
from petkit.artifacts.peft_config import parse_config, rank_of, scaling_of
from petkit.artifacts.reader import small_file
from petkit.artifacts.tensor_file import RawTensor, read_tensor_file
from petkit.errors import ArtifactError, InputError

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAX_CONFIG = 2**20
HEADS = ("classifier", "score", "head", "fc")
BACKBONE = "backbone"
# Image classifiers of transformers whose only layer after the backbone is `classifier`.
BARE_CLASSIFIERS = ("ViTForImageClassification", "DeiTForImageClassification")
TASKS = {"CAUSAL_LM": "causal_lm", "SEQ_CLS": "text_classification"}
# Task types that do not say what the model is for.
OPEN_TASKS = ("FEATURE_EXTRACTION",)
# Ends of the names of transformers' classes; PEFT records the class where it was told no task.
CLASS_TASKS = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForSequenceClassification": "text_classification",
    "ForImageClassification": "image_classification",
}
# Last layers of classifiers with hidden layers; their rows are the classes.
LAST_LAYERS = ("classifier.out_proj.weight", "classifier.weight", "score.weight")

Array = NDArray[np.float32]


class Origin(NamedTuple):
    """What must be known of a PEFT folder to write it back.

    Args:
        config: its `adapter_config.json`.
        head: the saved module that became `head`, if any.
        prefix: the part of the layers' paths that became `backbone`; "" when the whole model did, with its
            own classifier; None when the paths stayed.
        dtype: of its tensors, F32 when they differ.
    """

    config: dict[str, Any]
    head: str | None
    prefix: str | None
    dtype: str

    def host(self, layer: str) -> str:
        """Return the path of a layer in petkit's model."""
        if self.prefix is None:
            return layer
        return f"{BACKBONE}.{layer.removeprefix(f'{self.prefix}.') if self.prefix else layer}"

    def saved(self, name: str) -> str:
        """Return the name in petkit's model of a tensor of a module that was saved whole."""
        if self.prefix == "":
            return self.host(name)
        inside = self.head is not None and name.startswith(f"{self.head}.")
        return f"head.{name.removeprefix(f'{self.head}.')}" if inside else name

    def settings(self) -> dict[str, Any]:
        """Return it as plain values, for the manifest."""
        return {"adapter_config": self.config, "head": self.head, "prefix": self.prefix, "dtype": self.dtype}


class Adapter(NamedTuple):
    """What a PEFT folder becomes: the manifest and float32 tensors of an artifact with 32-bit weights."""

    manifest: Manifest
    dense: dict[str, Array]


def read_adapter(folder: Path, tensors: Mapping[str, RawTensor], task: str | None = None) -> Adapter:
    """Read a PEFT LoRA folder.

    Args:
        folder: holds `adapter_config.json`.
        tensors: its tensors, as `read_tensors` or a converted pickle gives them.
        task: what the model is for, where the folder does not say it.

    Returns:
        Manifest and weights: `<layer>.lora.down.weight` (r, in), `<layer>.lora.up.weight` (out, r), the head
        as `head.weight` and `head.bias`, other saved modules under their own names.

    Raises:
        ArtifactError: the files are damaged or contradict each other.
        InputError: a PEFT feature that petkit cannot keep, or another task than the folder's own.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    where = str(folder / CONFIG_FILE)
    try:
        config = parse_config(small_file(folder, CONFIG_FILE, MAX_CONFIG), where)
    except FileNotFoundError:
        raise InputError(f"{folder} is no PEFT adapter: it has no {CONFIG_FILE}") from None
    layers, saved = _sort(tensors, config, str(folder))
    task = _task_name(config, task, where)
    head = _head_module(saved)
    prefix = _prefix(config, task, head, {layer for layer, _ in layers})
    origin = Origin(config, None if prefix == "" else head, prefix, _common_dtype(tensors))
    dense = {
        f"{origin.host(layer)}.lora.{part}.weight": to_float32(raw) for (layer, part), raw in layers.items()
    }
    dense |= {origin.saved(name): to_float32(raw) for name, raw in saved.items()}
    return Adapter(_manifest(origin, task, layers, dense), dense)


def read_tensors(folder: Path) -> dict[str, RawTensor]:
    """Return the tensors of a PEFT folder by name.

    Raises:
        ArtifactError: the file is damaged.
        InputError: there is none.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    try:
        return read_tensor_file(folder, TENSOR_FILE).tensors
    except FileNotFoundError:
        raise InputError(f"{folder} is no PEFT adapter: it has no {TENSOR_FILE}") from None


_PARTS = {"lora_A.weight": "down", "lora_B.weight": "up"}


def _sort(
    tensors: Mapping[str, RawTensor], config: Mapping[str, Any], where: str
) -> tuple[dict[tuple[str, str], RawTensor], dict[str, RawTensor]]:
    """Return the LoRA matrices by (layer, part), and the tensors of modules saved whole by their path."""
    layers: dict[tuple[str, str], RawTensor] = {}
    saved: dict[str, RawTensor] = {}
    modules = tuple(config.get("modules_to_save") or ())
    for name, raw in tensors.items():
        path = name.removeprefix(PREFIX)
        ending = next((ending for ending in _PARTS if path.endswith(f".{ending}")), None)
        if path == name:
            raise InputError(f"{where}: tensor {name} does not begin with {PREFIX}")
        if ending:
            layers[path[: -len(ending) - 1], _PARTS[ending]] = raw
        elif _is_saved_whole(path, modules):
            saved[path] = raw
        else:
            raise InputError(
                f"{where}: petkit cannot keep the tensor {name}: it is neither LoRA nor in modules_to_save"
            )
    _check_layers(layers, config, where)
    return layers, saved


def _is_saved_whole(path: str, modules: tuple[str, ...]) -> bool:
    """PEFT saves every module whose path ends in a name: `classifier` takes `pre_classifier` too."""
    parents = itertools.accumulate(path.split(".")[:-1], "{}.{}".format)
    return any(parent.endswith(modules) for parent in parents)


def _check_layers(layers: Mapping[tuple[str, str], RawTensor], config: Mapping[str, Any], where: str) -> None:
    if not layers:
        raise ArtifactError(f"{where} holds no lora_A and lora_B")
    for layer in {layer for layer, _ in layers}:
        parts = [layers.get((layer, part)) for part in ("down", "up")]
        if any(raw is None or len(raw.shape) != 2 for raw in parts):
            shapes = [None if raw is None else raw.shape for raw in parts]
            raise InputError(
                f"{where}: {layer} must have two matrices lora_A and lora_B, got shapes {shapes}"
            )
        ranks = {parts[0].shape[0], parts[1].shape[1], rank_of(config, layer)}  # type: ignore[union-attr]
        if len(ranks) != 1:
            raise ArtifactError(
                f"{where}: {layer} has contradicting ranks {sorted(ranks)} in config and tensors"
            )


def _head_module(saved: Mapping[str, RawTensor]) -> str | None:
    """Return the name of the saved module that is one linear layer for classification, if there is one."""
    for head in HEADS:
        names = {name for name in saved if name.startswith(f"{head}.")}
        if names and names <= {f"{head}.weight", f"{head}.bias"} and len(saved[f"{head}.weight"].shape) == 2:
            return head
    return None


def _prefix(
    config: Mapping[str, Any], task: str | None, head: str | None, layers: Collection[str]
) -> str | None:
    """Return what stands before the backbone's paths, "" where the classifier needs all its own layers.

    petkit puts its head on the last hidden state of a bare backbone. So do the image classifiers named above
    and the classifiers on decoders (`score`). Others have layers of their own before the classifier, so that
    the whole model of transformers is the backbone.
    """
    model = _class_of(config)
    alike = (head == "classifier" and model in BARE_CLASSIFIERS) or (
        head == "score" and task == "text_classification"
    )
    prefixes = {layer.partition(".")[0] for layer in layers}
    if alike and len(prefixes) == 1:
        return prefixes.pop()
    own = model.endswith(("ForSequenceClassification", "ForImageClassification"))
    return "" if own or (not model and task == "text_classification") else None


def _class_of(config: Mapping[str, Any]) -> str:
    """Return the base's class, which PEFT records where it was told no task; "" if it did not."""
    mapping = config.get("auto_mapping")
    return str(mapping.get("base_model_class") or "") if isinstance(mapping, dict) else ""


def _common_dtype(tensors: Mapping[str, RawTensor]) -> str:
    dtypes = {raw.dtype for raw in tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else "F32"


def _manifest(
    origin: Origin,
    task: str | None,
    layers: Mapping[tuple[str, str], RawTensor],
    dense: Mapping[str, Array],
) -> Manifest:
    config, paths = origin.config, sorted({layer for layer, _ in layers})
    scaling = {f"{origin.host(path)}.lora": scaling_of(config, path) for path in paths}
    same = len(set(scaling.values())) == 1
    base = _model_name(config.get("base_model_name_or_path"))
    return Manifest(
        base=Base(id=base, revision=config.get("revision")),
        model={"name": base} | ({"pooling": "own"} if origin.prefix == "" else {}),
        adapter={
            "method": "lora",
            "bits": 32,
            "bottleneck": max(raw.shape[0] for (_, part), raw in layers.items() if part == "down"),
            "scale": next(iter(scaling.values())) if same else 1.0,
            "dropout": float(config.get("lora_dropout", 0.0)),
            "targets": [origin.host(path) for path in paths],
        },
        task=_task(task, dense),
        scaling={} if same else scaling,
        source=Source(format="peft", settings=origin.settings()),
    )


def _model_name(name: Any) -> str:
    """Return the base model's name as a recipe of petkit spells it: hub names get the prefix hf/."""
    text = str(name or "unknown")
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith(("timm/", "./", "../"))
    return f"hf/{text}" if is_hub_name and not Path(text).exists() else text


def _task_name(config: Mapping[str, Any], given: str | None, where: str) -> str | None:
    """Return the task that the folder tells, by its own word or by the base's class, else the given one."""
    model, own = _class_of(config), config.get("task_type")
    if own is not None and own not in TASKS and own not in OPEN_TASKS:
        raise InputError(
            f"{where} is for task_type {own!s:.40}: petkit reads {', '.join(TASKS)}, and adapters without one"
        )
    by_class = (name for ending, name in CLASS_TASKS.items() if model.endswith(ending))
    told = TASKS.get(str(own)) or next(by_class, None)
    if told and given and told != given:
        raise InputError(f"{where} is for {told}, --task says {given}: leave it out")
    return told or given


def _task(name: str | None, dense: Mapping[str, Array]) -> Task | None:
    """Return the task with numbered classes; an unnamed head is of images, for which PEFT has no name."""
    name = name or ("image_classification" if "head.weight" in dense else None)
    if name is None:
        return None
    ends = (f"{BACKBONE}.{layer}" for layer in LAST_LAYERS)
    last = next((dense[end] for end in ("head.weight", *ends) if end in dense), ())
    if len(last) == 1:
        raise InputError(
            "the adapter's head has one output, a regression: petkit reads classifiers of two classes or more"
        )
    return Task(type=name, classes=tuple(map(str, range(len(last)))))  # type: ignore[arg-type]
