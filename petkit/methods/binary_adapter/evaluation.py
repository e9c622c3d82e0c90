"""Measuring a finished artifact on a split: as it is, or with noise on its adapter matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from petkit.data.config import DataConfig
from petkit.data.images import with_preprocess
from petkit.data.loading import Dataset, load_data
from petkit.errors import ArtifactError, InputError
from petkit.methods.binary_adapter.algorithm import step_function
from petkit.models.inserts import inserts
from petkit.models.loading import AdaptedModel, load_adapted
from petkit.quantization.noise import add_noise
from petkit.training.config import Precision
from petkit.training.evaluate import Evaluation, evaluate
from petkit.training.seeds import stream

SplitName = Literal["train", "validation", "test"]


def evaluate_artifact(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    split: SplitName = "test",
    mode: Literal["packed", "dense"] = "packed",
    batch_size: int = 64,
    noise: float = 0.0,
    noise_seed: int = 0,
) -> Evaluation:
    """Evaluate an artifact on a split of the data that its own recipe names.

    Args:
        folder: the artifact.
        device: where to compute.
        split: train, validation or test.
        mode: packed computes from the bits; dense dequantises first, as any noise requires.
        batch_size: examples per forward pass.
        noise: r; every adapter matrix gets N(0, (r sigma)^2), sigma its own standard deviation.
        noise_seed: which draw.

    Returns:
        The evaluation.

    Raises:
        ArtifactError: the artifact is damaged, or records no data.
        PetkitError: the base or the data cannot be loaded, by kind.

    Source:
        Jie, Wang and Deng (2023), robustness to weight noise.
    """
    adapted = load_adapted(folder, device, mode="dense" if noise else mode)
    dataset = load_split(adapted, recorded_data(adapted), split, recorded_seed(adapted))
    with weight_noise(adapted.model, noise, noise_seed):
        return evaluate_adapted(adapted, dataset, device, batch_size)


def evaluate_adapted(
    adapted: AdaptedModel,
    dataset: Dataset,
    device: torch.device | str,
    batch_size: int,
    workers: int = 0,
    precision: Precision = "fp32",
) -> Evaluation:
    """Evaluate a loaded artifact.

    Args:
        adapted: model and record.
        dataset: one split.
        device: where the model is.
        batch_size: examples per forward pass.
        workers: loader processes.
        precision: bf16 runs under autocast.

    Returns:
        The evaluation, per class where the artifact knows its classes.

    Raises:
        InputError: the split is empty.
    """
    step = step_function(task_of(adapted))
    return evaluate(
        adapted.model,
        dataset,
        step,
        batch_size=batch_size,
        device=device,
        precision=precision,
        workers=workers,
        classes=adapted.classes,
    )


def load_split(adapted: AdaptedModel, data: DataConfig, split: SplitName, seed: int) -> Dataset:
    """Load a split the way the artifact wants its inputs: its pixels, its classes, its length.

    Args:
        adapted: the artifact.
        data: where the examples are.
        split: which part.
        seed: of the choice that train_size and test_size make.

    Returns:
        The data set.

    Raises:
        InputError: there is no such split.
        PetkitError: the data cannot be loaded, by kind.
    """
    task = adapted.artifact.manifest.task
    if adapted.preprocess is not None:
        data = with_preprocess(data, adapted.preprocess)
    if task is not None and task.max_length is not None:
        data = data.model_copy(update={"max_length": task.max_length})
    splits = load_data(
        data,
        task_of(adapted),
        adapted.preprocess,
        adapted.tokenizer,
        classes=adapted.classes or None,
        splits=(split,),
        seed=seed,
    )
    found: Dataset | None = getattr(splits, split)
    if found is None:
        raise InputError(f"the data must have a {split} split, got none: choose another --split or --data")
    return found


def task_of(adapted: AdaptedModel) -> str:
    """What the artifact predicts; one that was converted without a task is an image classifier."""
    task = adapted.artifact.manifest.task
    return task.type if task is not None else "image_classification"


def recorded_data(adapted: AdaptedModel) -> DataConfig:
    """Read the data section of the recipe that made an artifact.

    Args:
        adapted: the artifact.

    Returns:
        The section.

    Raises:
        ArtifactError: there is none, or it is not valid.
    """
    folder, config = adapted.artifact.folder, adapted.artifact.config
    if "data" not in config:
        raise ArtifactError(
            f"{folder} must record the data it was trained on, got no data section: pass --data"
        )
    try:
        return DataConfig(**config["data"])
    except (TypeError, ValidationError) as error:
        raise ArtifactError(f"the data section of {folder}/config.yaml is not valid: pass --data") from error


def recorded_seed(adapted: AdaptedModel) -> int:
    """The seed of the recipe that made an artifact; it chose the examples of train_size and test_size."""
    seed = adapted.artifact.config.get("seed", 0)
    return seed if isinstance(seed, int) else 0


@contextmanager
def weight_noise(model: nn.Module, relative: float, seed: int) -> Iterator[None]:
    """Add noise to every adapter matrix while the context lasts; the head stays as it is.

    Args:
        model: loaded in mode dense, changed in place and put back.
        relative: r, in standard deviations of each matrix; 0 changes nothing.
        seed: which draw.

    Raises:
        InputError: the adapters are packed, or relative is negative.

    Source:
        Jie, Wang and Deng (2023), robustness to weight noise.
    """
    if relative == 0:
        yield
        return
    weights = _adapter_weights(model)
    kept = {name: weight.clone() for name, weight in weights.items()}
    noisy = add_noise({name: w.cpu() for name, w in kept.items()}, relative, stream(seed, "noise"))
    _copy(weights, noisy)
    try:
        yield
    finally:
        _copy(weights, kept)


def _adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    projections = {
        f"{name}.{part}": getattr(insert, part)
        for name, insert in inserts(model).items()
        for part in ("down", "up")
    }
    packed = [name for name, projection in projections.items() if not isinstance(projection, nn.Linear)]
    if packed:
        raise InputError(f"noise needs dense adapter weights, got packed bits in {packed[0]}: use mode dense")
    return {name: projection.weight.detach() for name, projection in projections.items()}


def _copy(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in target.items():
            weight.copy_(source[name])
