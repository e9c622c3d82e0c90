"""Real inputs for a quantisation: some to fit on, others to compare logits on, and the 32-bit model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from petkit.artifacts import Artifact
from petkit.data.config import DataConfig
from petkit.data.images import with_preprocess
from petkit.data.loading import Dataset, load_data
from petkit.errors import InputError
from petkit.models.inserts import inserts, load_packed
from petkit.models.loading import load_adapted
from petkit.quantization.artifact import Quantized
from petkit.quantization.calibration import Batch, predictions, second_moments


@dataclass(frozen=True, eq=False)
class Inputs:
    """The 32-bit model and collated batches on its device.

    Args:
        model: the source artifact's model, in evaluation mode.
        calibration: batches to fit on.
        comparison: batches to compare logits on.
        held_out: whether the two have no example in common.
        base: where the artifact's base is, if not where the artifact says.
    """

    model: nn.Module
    calibration: tuple[Batch, ...]
    comparison: tuple[Batch, ...]
    held_out: bool
    base: str | None = None

    def second_moments(self) -> dict[str, Tensor]:
        """Second moments of what enters each adapter matrix, as `calibration.second_moments` gives them."""
        return second_moments(self.model, self.calibration)

    def full_model_bytes(self) -> int:
        """Float32 bytes of the whole model with its head and without adapters."""
        every = sum(parameter.numel() for parameter in self.model.parameters())
        added = sum(p.numel() for adapter in inserts(self.model).values() for p in adapter.parameters())
        return 4 * (every - added)

    def logits(self) -> Tensor:
        """Predictions (predictions, classes) of the model on the comparison batches."""
        return predictions(self.model, self.comparison)

    def become(self, quantized: Quantized) -> None:
        """Put dequantised weights into the model, in memory.

        Args:
            quantized: made from this model's adapters.
        """
        load_packed(self.model, quantized.packed, quantized.dense, quantized.manifest.scaling, as_dense=True)

    def logits_of(self, folder: Path) -> Tensor:
        """Predictions of an artifact read from disk, computed from its packed bits.

        Args:
            folder: the artifact.
        """
        device = next(self.model.parameters()).device
        return predictions(load_adapted(folder, device, base_override=self.base).model, self.comparison)


def load_inputs(
    source: Artifact,
    data: DataConfig,
    *,
    batches: int,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    base: str | None = None,
) -> Inputs:
    """Load a 32-bit artifact's model and batches of its training split.

    Args:
        source: the artifact, on disk.
        data: where the examples are.
        batches: how many to calibrate on, and as many to compare on.
        batch_size: examples a batch.
        seed: choice of the examples.
        device: where model and batches go.
        base: the base in another place than the artifact says.

    Returns:
        The inputs; the comparison uses other examples when the split has twice as many as are fitted on.

    Raises:
        InputError: the artifact has no task, or the data no training example.
        PetkitError: model or data cannot be loaded.
    """
    if source.manifest.task is None:
        raise InputError(f"{source.folder} does not say what its head predicts: leave --data out")
    adapted = load_adapted(source.folder, device, base_override=base)
    section = with_preprocess(data, adapted.preprocess) if adapted.preprocess else data
    splits = load_data(
        section,
        source.manifest.task.type,
        adapted.preprocess,
        adapted.tokenizer,
        splits=("train",),
        seed=seed,
    )
    if splits.train is None:
        raise InputError("calibration needs a train split, got none: see data.path")
    fitted, compared = draw(len(splits.train), batches * batch_size, seed)
    return Inputs(
        adapted.model,
        _collate(splits.train, fitted, batch_size, device),
        _collate(splits.train, compared, batch_size, device),
        held_out=set(fitted).isdisjoint(compared),
        base=base,
    )


def draw(available: int, wanted: int, seed: int) -> tuple[list[int], list[int]]:
    """Choose examples to fit on and examples to compare on.

    Args:
        available: examples there are, at least 1.
        wanted: examples of each kind.
        seed: of the order.

    Returns:
        Two lists of row numbers: disjoint when there are enough, else the same one twice.
    """
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed)).tolist()
    first = order[:wanted]
    return first, order[wanted : 2 * wanted] if available >= 2 * wanted else first


def _collate(
    dataset: Dataset, rows: Sequence[int], batch_size: int, device: torch.device | str
) -> tuple[Batch, ...]:
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    made = (dataset.collate([dataset[row] for row in part]) for part in parts)
    return tuple({name: tensor.to(device) for name, tensor in batch.items()} for batch in made)
