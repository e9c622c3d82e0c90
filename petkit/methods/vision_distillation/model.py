"""What is trained: the student, and a linear map from its features to the teacher's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from petkit.models.features import logits_and_features
from petkit.models.loaded import new_head


class Answers(NamedTuple):
    """What a student says of pictures."""

    logits: Tensor
    """(batch, classes)."""

    projected: Tensor | None
    """(batch, teacher's width): its features after the map; None without one."""


class Pupil(nn.Module):
    """A student with the map that is left out of its artifact.

    Args:
        student: a classifier whose last layer is `head`.
        projector: map from its pooled features to the teacher's; None where features are not compared.
    """

    def __init__(self, student: nn.Module, projector: nn.Linear | None) -> None:
        super().__init__()
        self.student, self.projector = student, projector

    def forward(self, pixel_values: Tensor) -> Answers:
        """Answers to images (batch, 3, height, width)."""
        if self.projector is None:
            return Answers(self.student(pixel_values), None)
        head = self.student.get_submodule("head")
        logits, features = logits_and_features(self.student, (head,), pixel_values)
        return Answers(logits, self.projector(features))


def new_projector(
    student: nn.Module, width: int, pixel_values: Tensor, generator: torch.Generator
) -> nn.Linear:
    """Make the map for a student.

    Args:
        student: a classifier whose last layer is `head`, left as it is.
        width: of the teacher's features.
        pixel_values: a batch that the student takes, to see how wide its features are.
        generator: source of the initial weights.

    Returns:
        The map, on the device of the pixels.

    Raises:
        InputError: the student gives its head no features.
    """
    training = student.training
    student.eval()
    with torch.no_grad():
        _, features = logits_and_features(student, (student.get_submodule("head"),), pixel_values)
    student.train(training)
    return new_head(features.shape[1], width, generator).to(pixel_values.device)
