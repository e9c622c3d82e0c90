"""Checkpoints of what training changes: safetensors and JSON, complete or absent, never the frozen base.

checkpoint-<step>/
    weights.safetensors     trainable parameters (latent adapter weights and head), by name
    optimizer.safetensors   AdamW's moments and step counts, `<kind>.<parameter>`
    best.safetensors        the weights of the best validation step, when one is being selected
    state.json              step, settings, selection so far, length of metrics.jsonl, sha256 of the files
    above

Random streams need no tensor: each is derived from the seed, its name and the step (see
`petkit.training.seeds`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from petkit.artifacts.files import write_folder
from petkit.configuration import Config
from petkit.configuration.effects import effective
from petkit.errors import ArtifactError, ConfigError, PetkitError
from petkit.training.sharding import shared_out, whole_tensor

log = logging.getLogger(__name__)

VERSION = 1
KEPT = 2
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
# What a resumed run may change: where files go and when it stops, but nothing that changes its weights.
MAY_DRIFT = (
    "output",
    "data.workers",
    "training.checkpoint_every",
    "training.checkpoint_steps",
    "training.max_steps",
    "training.max_time",
    "training.sharding",
    "training.tensorboard",
)
# Kept in a checkpoint and not compared with it: rewards are no part of any loss. Whether they chose between
# steps is for the recipe to look at.
NOTED = ("reward.function", "reward.sha256", "reward.timeout")


@dataclass
class Progress:
    """How far a run is, beside its weights."""

    step: int = 0
    """Optimiser steps done."""

    seconds: float = 0.0
    """Time spent in optimiser steps."""

    metrics_bytes: int = 0
    """Length of metrics.jsonl."""

    best_score: float | None = None
    """Highest validation score so far."""

    best_step: int | None = None
    """The step it belongs to."""

    best_weights: dict[str, Tensor] | None = None
    """The weights of that step."""

    unmeasured: bool = False
    """Whether the evaluation behind the step failed: a run that goes on begins with it."""


def save(
    folder: Path | None,
    progress: Progress,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> Path | None:
    """Save `folder/checkpoint-<step>` and drop all but the newest two.

    Sharded tensors are gathered, so that the files do not tell how they were held; every process must then
    call this.

    Args:
        folder: the run's folder; None on a process that gives its shards and writes nothing.
        progress: how far the run is.
        parameters: name -> trainable parameter.
        optimizer: AdamW over exactly these.
        identity: dotted key -> JSON value of every setting that must not change on resume.

    Returns:
        The checkpoint; None without a folder.

    Raises:
        PetkitError: it cannot be written; nothing is left under its final name.
    """
    tensors: dict[str, Mapping[str, Tensor]] = {
        "weights.safetensors": parameters,
        "optimizer.safetensors": _optimizer_tensors(parameters, optimizer),
    }
    if progress.best_weights is not None:
        tensors["best.safetensors"] = progress.best_weights
    files = {name: _gathered(own, keep=folder is not None) for name, own in tensors.items()}
    if folder is None:
        return None
    state = {
        "version": VERSION,
        "step": progress.step,
        "seconds": progress.seconds,
        "metrics_bytes": progress.metrics_bytes,
        "best_score": progress.best_score,
        "best_step": progress.best_step,
        "unmeasured": progress.unmeasured,
        "random": "derived from seed, stream name, process and step",
        "identity": dict(identity),
        "identity_sha256": identity_sha256(identity),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files["state.json"] = json.dumps(state, indent=1, sort_keys=True).encode()
    target = folder / f"checkpoint-{progress.step}"
    try:
        write_folder(target, files)
    except PetkitError as error:
        raise PetkitError(f"the run failed at step {progress.step}: {error}") from error
    for old in checkpoints(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> Progress:
    """Put a checkpoint's weights and moments back.

    Args:
        path: a checkpoint folder.
        parameters: name -> trainable parameter, overwritten in place.
        optimizer: AdamW over exactly these, without state so far.
        identity: settings of the run that resumes.

    Returns:
        How far the saved run was.

    Raises:
        ArtifactError: the checkpoint is damaged or of another model.
        ConfigError: a setting differs from the saved one; every such key is listed.
    """
    state = _read_state(path)
    check_drift(path, identity)
    weights = _read_tensors(path, "weights.safetensors", state)
    moments = _read_tensors(path, "optimizer.safetensors", state)
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))
        raise ArtifactError(f"{path} must hold the trainable parameters of this model, got others: {odd[:3]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if weights[name].shape != parameter.shape:
                raise ArtifactError(
                    f"{path}: {name} must have shape {tuple(parameter.shape)}, got "
                    f"{tuple(weights[name].shape)}"
                )
            parameter.copy_(shared_out(weights[name], parameter))
            if f"exp_avg.{name}" in moments:
                optimizer.state[parameter] = {
                    kind: one if kind == "step" else shared_out(one, parameter)
                    for kind, one in ((kind, moments[f"{kind}.{name}"]) for kind in MOMENTS)
                }
    best = None
    if "best.safetensors" in state["sha256"]:
        found = _read_tensors(path, "best.safetensors", state)
        best = {name: shared_out(one, parameters.get(name, one)) for name, one in found.items()}
    return Progress(
        step=state["step"],
        seconds=state["seconds"],
        metrics_bytes=state["metrics_bytes"],
        best_score=state["best_score"],
        best_step=state["best_step"],
        best_weights=best,
        # Checkpoints before petkit kept it have none.
        unmeasured=state.get("unmeasured", False),
    )


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run.

    Args:
        folder: the run's folder.

    Returns:
        Folders named `checkpoint-<step>`, the newest first; a folder that is being written has another name.
    """
    if not folder.is_dir():
        return []
    found = [
        (re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.iterdir() if path.is_dir()
    ]
    numbered = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(numbered, reverse=True)]


def newest(folder: Path) -> Path:
    """Find the newest complete checkpoint of a run; a damaged one is named in the log and passed over.

    Args:
        folder: the run's folder.

    Returns:
        The checkpoint.

    Raises:
        ConfigError: there is none.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"--resume needs a complete checkpoint, and {folder} does not exist: there is nothing to resume "
            "from, leave --resume out"
        )
    for path in checkpoints(folder):
        try:
            state = _read_state(path)
            for name in state["sha256"]:
                _read_file(path, name, state)
        except ArtifactError as error:
            log.warning("passing over a damaged checkpoint: %s", error)
        else:
            return path
    raise ConfigError(
        f"--resume needs a complete checkpoint in {folder}, got none: start afresh with --overwrite"
    )


def clean(folder: Path) -> None:
    """Remove what a killed process left half-written.

    Args:
        folder: the run's folder, held by this run.
    """
    for path in folder.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def check_drift(path: Path, now: Mapping[str, Any]) -> None:
    """Refuse to resume with other settings.

    Args:
        path: the checkpoint.
        now: the settings of this run.

    Raises:
        ArtifactError: the checkpoint is damaged.
        ConfigError: lists every key that differs, with both values.
    """
    saved = saved_settings(path)
    absent = "(absent)"
    changed = [
        f"{key}: {saved.get(key, absent)!r} -> {now.get(key, absent)!r}"
        for key in sorted({*saved, *now}.difference(NOTED))
        if saved.get(key, absent) != now.get(key, absent)
    ]
    if changed:
        raise ConfigError(
            f"--resume needs the settings of {path}, got {len(changed)} changed ({'; '.join(changed)}): "
            "restore them or start a new output folder"
        )


def saved_settings(path: Path) -> dict[str, Any]:
    """Read the settings that a checkpoint was made with.

    Args:
        path: the checkpoint.

    Returns:
        Dotted key -> JSON value.

    Raises:
        ArtifactError: the checkpoint is damaged.
    """
    return dict(_read_state(path)["identity"])


def lasting_settings(config: Config) -> dict[str, Any]:
    """List the settings that a resumed run must share with the run it goes on from.

    Args:
        config: a whole recipe.

    Returns:
        Dotted key -> JSON value, without the keys that only say where files go and when the run stops.
    """
    settings = dotted_settings(effective(config))
    every = "training.evaluate_every_steps"
    if settings.get("training.select") != "validation" or settings.get(every) is None:
        # Evaluations that choose nothing change no weights; and older checkpoints do not know the key.
        settings.pop(every, None)
    return {key: value for key, value in settings.items() if key not in MAY_DRIFT}


def dotted_settings(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping of dotted keys.

    Args:
        section: names to values or further sections.
        prefix: put before every key.
    """
    settings: dict[str, Any] = {}
    for key, value in section.items():
        nested = isinstance(value, Mapping)
        settings |= dotted_settings(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return settings


def identity_sha256(identity: Mapping[str, Any]) -> str:
    """Hash settings independently of their order.

    Args:
        identity: dotted key -> JSON value.

    Returns:
        64 hexadecimal digits.

    Source:
        SHA-256 of canonical JSON.
    """
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


def _gathered(tensors: Mapping[str, Tensor], keep: bool) -> bytes:
    """A file of whole tensors, gathered one by one; processes that do not write keep nothing of them."""
    found = {}
    # In the same order on every process, which tensors that were read from a file are not in.
    for name in sorted(tensors):
        whole = whole_tensor(tensors[name])
        if keep:
            found[name] = whole.cpu().contiguous()
    return save_tensors(found) if keep else b""


def _optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": optimizer.state[parameter][kind]
        for name, parameter in parameters.items()
        if optimizer.state.get(parameter)
        for kind in MOMENTS
    }


def _read_state(path: Path) -> dict[str, Any]:
    file = path / "state.json"
    try:
        state = json.loads(file.read_bytes())
        version = state["version"]
        missing = {"step", "seconds", "metrics_bytes", "identity", "sha256", "best_score", "best_step"} - set(
            state
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file} must describe a checkpoint, got {type(error).__name__}: {error}"
        ) from error
    if version != VERSION or missing:
        raise ArtifactError(
            f"{file} must be of version {VERSION} and complete, got {version!r} without {sorted(missing)}"
        )
    return dict(state)


def _read_file(path: Path, name: str, state: Mapping[str, Any]) -> bytes:
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path / name} must be readable, got {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != state["sha256"].get(name):
        raise ArtifactError(
            f"{path / name} must have the sha256 in state.json, got another: it is truncated or altered"
        )
    return content


def _read_tensors(path: Path, name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_tensors(_read_file(path, name, state))
    except SafetensorError as error:
        raise ArtifactError(f"{path / name} must be a safetensors file, got {error}") from error
    return tensors
