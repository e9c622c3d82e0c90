from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from petkit.methods.vision_distillation.config import DistillationConfig
from petkit.methods.vision_distillation.model import Pupil, new_projector
from petkit.methods.vision_distillation.step import MEASURES, ComparedStep, distillation_step


class Student(nn.Module):
    """Means of the channels, and a head on them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels.mean((2, 3)))


def batch_of(size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(size, 3, 2, 2, generator=generator),
        "labels": torch.arange(size) % 4,
        "teacher_logits": torch.randn(size, 4, generator=generator),
        "teacher_features": torch.randn(size, 5, generator=generator),
    }


def pupil(features: bool = True) -> Pupil:
    torch.manual_seed(0)
    student, pixels = Student(), batch_of()["pixel_values"]
    projector = new_projector(student, 5, pixels, torch.Generator().manual_seed(1)) if features else None
    return Pupil(student, projector)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_the_step_sums_the_weighed_parts(kind: Any) -> None:
    model, batch = pupil(), batch_of()
    config = DistillationConfig(alpha=0.3, temperature=2.0, feature_weight=0.7, feature_loss=kind)
    output = distillation_step(config)(model, batch)
    rows = batch["pixel_values"].mean((2, 3))
    logits = model.student.head(rows)
    entropy = functional.cross_entropy(logits, batch["labels"])
    teacher = (batch["teacher_logits"] / 2).log_softmax(-1)
    kl = (teacher.exp() * (teacher - (logits / 2).log_softmax(-1))).sum(-1).mean()
    measures = {name: total / count for name, (total, count) in output.measures.items()}
    assert set(measures) == set(MEASURES)
    assert measures["cross_entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert measures["kl"] == pytest.approx(kl.item(), rel=1e-4)
    expected = 0.7 * entropy + 0.3 * 4 * kl + 0.7 * measures["feature_distance"]
    assert output.count == 6
    assert output.loss.item() == pytest.approx(6 * expected.item(), rel=1e-4)
    same = (logits.argmax(-1) == batch["teacher_logits"].argmax(-1)).float().mean()
    assert measures["agreement"] == pytest.approx(same.item())
    assert output.correct.tolist() == (logits.argmax(-1) == batch["labels"]).tolist()


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    model, batch = pupil(), batch_of()
    step = distillation_step(DistillationConfig(feature_weight=1.0))
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 6))]
    apart = [step(model, part) for part in parts]
    assert sum(one.loss.item() for one in apart) == pytest.approx(step(model, batch).loss.item(), rel=1e-5)


def test_a_part_without_weight_trains_nothing() -> None:
    model, batch = pupil(features=False), batch_of()
    del batch["teacher_features"]
    output = distillation_step(DistillationConfig(alpha=1.0))(model, batch)
    output.loss.backward()
    # With alpha 1 labels say nothing.
    gradient = model.student.head.weight.grad.clone()
    model.zero_grad()
    distillation_step(DistillationConfig(alpha=1.0))(
        model, {**batch, "labels": 3 - batch["labels"] % 4}
    ).loss.backward()
    assert torch.equal(gradient, model.student.head.weight.grad)
    assert set(output.measures) == {"cross_entropy", "kl", "agreement"}


def test_features_alone_reach_projector_and_student_but_not_the_head() -> None:
    model, batch = pupil(), batch_of()
    del batch["teacher_logits"]
    pixels = batch["pixel_values"].requires_grad_()
    output = distillation_step(DistillationConfig(alpha=0.0, feature_weight=1.0))(model, batch)
    assert set(output.measures) == {"cross_entropy", "feature_distance"}
    output.loss.backward()
    assert pixels.grad.abs().sum() > 0
    assert model.projector.weight.grad.abs().sum() > 0


def test_the_projector_is_drawn_from_its_own_stream() -> None:
    first, second = pupil().projector, pupil().projector
    assert torch.equal(first.weight, second.weight)
    assert first.weight.shape == (5, 3)


def test_a_comparison_counts_equal_answers() -> None:
    model, batch = pupil(features=False).student, batch_of()
    compared = ComparedStep()
    for _ in range(2):
        output = compared(model, batch)
    logits = model(batch["pixel_values"])
    assert compared.agreed == 2 * int((logits.argmax(-1) == batch["teacher_logits"].argmax(-1)).sum())
    assert output.loss.item() == pytest.approx(
        functional.cross_entropy(logits, batch["labels"], reduction="sum").item(), rel=1e-5
    )
    del batch["teacher_logits"]
    assert compared(model, batch).count == 6
