"""A trained student as an artifact: its adapters alone, or the whole model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from petkit.artifacts import (
    Base,
    Manifest,
    Task,
    atomic_write,
    step,
    write_artifact,
)
from petkit.artifacts.dense import to_raw
from petkit.artifacts.files import staged_folder, write_folder
from petkit.artifacts.peft_export import export_adapter
from petkit.artifacts.reader import CONFIG, MANIFEST, Artifact
from petkit.artifacts.whole_model import DistilledManifest, shards_of, weights_sha256
from petkit.configuration import dump_yaml
from petkit.configuration.effects import effective
from petkit.errors import InputError
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.judging import reward_facts
from petkit.models.config import ModelConfig
from petkit.models.inserts import pack
from petkit.models.loaded import LoadedModel
from petkit.models.loading import load_adapted, load_model
from petkit.rollout.sampling import context_length
from petkit.training.outcome import size_ledger
from petkit.training.run import HISTORY

if TYPE_CHECKING:
    from petkit.artifacts.manifest import Step
    from petkit.methods.tropd.recipe import Ready

COMMAND = "distill"
# What tells a folder for a server, which is replaced with every update, from anybody's own.
SERVED = "petkit-served.txt"


def write_student(folder: Path, config: DistillConfig, ready: Ready, history: bytes) -> tuple[Step, ...]:
    """Write what was trained.

    Args:
        folder: of the artifact, being made.
        config: the recipe.
        ready: the trained student and who it learnt from.
        history: of the run.

    Returns:
        The artifact's lineage.
    """
    lineage = (step(COMMAND, effective(config), _inputs(ready)),)
    if config.student.tuning == "full":
        _write_whole(folder, config, ready, lineage, history)
    else:
        _write_adapter(folder, config, ready, lineage, history)
    return lineage


def write_served(
    folder: Path, model: nn.Module, config: DistillConfig, loaded: LoadedModel, is_whole: bool
) -> None:
    """Write a student in the form that a server loads it in: as a PEFT adapter, or whole.

    Args:
        folder: replaced.
        model: the student as it is now.
        config: the recipe.
        loaded: what the student was before.
        is_whole: whether all of it learns.
    """
    note = f"Weights of a student in training: petkit distill, {config.output}\n".encode()
    if is_whole:
        whole: Any = model
        with staged_folder(folder) as stage:
            whole.save_pretrained(stage)
            (stage / SERVED).write_bytes(note)
        return
    packed, dense = pack(model)
    raw = {name: to_raw(tensor) for name, tensor in dense.items()}
    artifact = Artifact(folder, _adapter_manifest(config, loaded, ()), packed, raw)
    write_folder(folder, {**export_adapter(artifact).files(), SERVED: note})


def check_served(folder: Path) -> None:
    """Refuse a folder for a server that holds something else, which would be replaced.

    Raises:
        InputError: it does.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and not (folder / SERVED).is_file():
        raise InputError(
            f"rollout.folder {folder} must be new or of an earlier run, since it is replaced with every "
            "update, and it holds something else: choose another"
        )


def load_student(folder: Path, config: DistillConfig, device: torch.device) -> nn.Module:
    """Load what `write_student` wrote, in evaluation mode."""
    if config.student.tuning == "full":
        return load_model(ModelConfig(name=str(folder)), "causal_lm").model.eval().to(device)
    return load_adapted(folder, device, mode="packed").model


def sizes_of(config: DistillConfig, ready: Ready) -> dict[str, Any]:
    """Bytes of the artifact's tensors against those of the whole student."""
    if config.student.tuning == "full":
        own = sum(one.numel() * one.element_size() for one in ready.model.parameters())
        return {"bytes": own, "ratio": 1.0}
    return size_ledger(*pack(ready.model), ready.full_model_bytes)


def _inputs(ready: Ready) -> dict[str, str]:
    found = {"base": ready.loaded.base_sha256, "prompts": ready.train.sha256}
    for name, teacher in ready.teachers.facts().items():
        found[f"teacher {name}".strip()] = teacher["sha256"]
    if ready.teachers.cached is not None:
        found["cache"] = ready.teachers.cached.sha256
    reward = reward_facts(ready.step.judge)
    if reward is not None:
        found["reward"] = reward["sha256"]
    return found


def _write_adapter(
    folder: Path, config: DistillConfig, ready: Ready, lineage: tuple[Step, ...], history: bytes
) -> None:
    packed, dense = pack(ready.model)
    write_artifact(
        folder,
        manifest=_adapter_manifest(config, ready.loaded, lineage),
        config=effective(config),
        packed=packed,
        dense=dense,
        extra_files={HISTORY: history},
    )


def _adapter_manifest(config: DistillConfig, loaded: LoadedModel, lineage: tuple[Step, ...]) -> Manifest:
    return Manifest(
        base=Base(id=loaded.base_id, revision=loaded.revision, sha256=loaded.base_sha256),
        lineage=lineage,
        model=config.student.model.model_dump(mode="json"),
        adapter=config.adapter.model_dump(mode="json"),
        task=Task(type="causal_lm", classes=(), preprocess=None, max_length=context_length(loaded.model)),
    )


def _write_whole(
    folder: Path, config: DistillConfig, ready: Ready, lineage: tuple[Step, ...], history: bytes
) -> None:
    model: Any = ready.model
    model.save_pretrained(folder)
    ready.loaded.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
    weights = {*shards_of(folder), "model.safetensors.index.json"}
    beside = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in weights)
    manifest = DistilledManifest(
        base=ready.loaded.base_id,
        lineage=lineage,
        weights_sha256=weights_sha256(folder),
        files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in beside},
        objective=config.objective.kind,
        teachers=ready.teachers.names,
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    atomic_write(folder / MANIFEST, text.encode())
    atomic_write(folder / CONFIG, dump_yaml(effective(config)).encode())
    atomic_write(folder / HISTORY, history)
