"""A toy problem that trains in milliseconds: frozen features, a trainable head, sums from a step function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from petkit.training.config import TrainingConfig
from petkit.training.evaluate import StepOutput


@dataclass
class Points:
    """Three Gaussian clouds in eight dimensions."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    @staticmethod
    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, labels = zip(*items, strict=True)
        return torch.stack(inputs), torch.stack(labels)


def points(n: int, seed: int = 0) -> Points:
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % 3
    return Points(centres[labels] + torch.randn(n, 8, generator=generator), labels)


def make_model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Linear(8, 16)
    base.requires_grad_(False)
    return nn.Sequential(base, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def classify(model: nn.Module, batch: Any) -> StepOutput:
    inputs, labels = batch
    logits = model(inputs).float()
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return StepOutput(loss, len(labels), logits.argmax(-1) == labels, labels)


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig(
        **{"epochs": 2, "batch_size": 8, "warmup_epochs": 1, "learning_rate": 0.01, **values}
    )


@pytest.fixture
def toy() -> Any:
    """The toy problem's functions as attributes: test modules cannot import this file."""

    class Toy:
        pass

    toy = Toy()
    toy.points, toy.make_model, toy.classify, toy.config = points, make_model, classify, config
    return toy
