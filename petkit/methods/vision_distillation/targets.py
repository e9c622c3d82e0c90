"""What the teacher says of every example, asked once, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from petkit.data.images import ImageDataset
from petkit.methods.vision_distillation.teacher import Teacher
from petkit.training.evaluate import to_device

LOGITS, FEATURES = "teacher_logits", "teacher_features"


@dataclass(frozen=True)
class Targets:
    """Answers of a teacher to the examples of a data set, in its order, float32 on the CPU."""

    logits: Tensor | None
    """(examples, classes)."""

    features: Tensor | None
    """(examples, width)."""

    def of(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """What a batch of these examples gets."""
        named = {LOGITS: self.logits, FEATURES: self.features}
        return {name: found[list(indices)] for name, found in named.items() if found is not None}


class TaughtDataset:
    """Examples with the teacher's answers to them.

    Args:
        dataset: as the student sees it.
        targets: one row for each example.
    """

    def __init__(self, dataset: ImageDataset, targets: Targets) -> None:
        self.dataset, self.targets = dataset, targets
        self.labels, self.rows = dataset.labels, dataset.rows

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "index": index}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch: of the student's inputs, labels, and `teacher_logits` and `teacher_features`."""
        return self.dataset.collate(examples) | self.targets.of([one["index"] for one in examples])

    def select(self, indices: Sequence[int]) -> TaughtDataset:
        """The examples at the given positions, in that order."""
        chosen = list(indices)
        kept = (None if one is None else one[chosen] for one in (self.targets.logits, self.targets.features))
        return TaughtDataset(self.dataset.select(chosen), Targets(*kept))


def ask(
    teacher: Teacher,
    dataset: ImageDataset,
    device: torch.device,
    *,
    features: bool,
    batch_size: int,
    workers: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> Targets:
    """Show every example to the teacher, as the teacher was trained to see it.

    The pictures are decoded for the teacher's own size, mean and standard deviation. No example is changed at
    random before a student sees it, so that one answer is right in every epoch; and since the batches are
    always the same, a run that goes on gets the same answers to the last bit.

    Args:
        teacher: on the device.
        dataset: as the student sees it.
        device: where the teacher computes.
        features: keep them.
        batch_size: examples of a forward pass.
        workers: loader processes.
        advance: told how many more examples are done.

    Returns:
        The answers.

    Raises:
        PetkitError: they are not finite.
    """
    shown = dataset.prepared(teacher.preprocess)
    loader: DataLoader[Any] = DataLoader(
        shown,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=shown.collate,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )
    logits: list[Tensor] = []
    rows: list[Tensor] = []
    for batch in loader:
        answer, found = teacher.answers(to_device(batch["pixel_values"], device))
        if answer is not None:
            logits.append(answer.cpu())
        if features:
            rows.append(found.cpu())
        advance(len(found))
    return Targets(torch.cat(logits) if logits else None, torch.cat(rows) if rows else None)
