"""The losses against float64 NumPy, and what follows from their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from petkit.methods.vision_distillation.algorithm import (
    agreements,
    distillation_loss,
    feature_distance,
    logit_distillation,
    standardized,
)


def draw(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def log_softmax(rows: Tensor) -> np.ndarray:
    values = rows.double().numpy()
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_logit_distillation_is_the_softened_divergence_times_its_square(
    seed: int, temperature: float
) -> None:
    student, teacher = draw(seed, 5, 7), draw(seed + 10, 5, 7)
    own, other = log_softmax(student / temperature), log_softmax(teacher / temperature)
    expected = temperature**2 * (np.exp(other) * (other - own)).sum(-1).mean()
    assert logit_distillation(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-4)


def test_its_gradient_is_the_difference_of_softened_answers() -> None:
    student, teacher, temperature = draw(0, 4, 6).requires_grad_(), draw(1, 4, 6), 3.0
    logit_distillation(student, teacher, temperature).backward()
    own, other = np.exp(log_softmax(student.detach() / 3)), np.exp(log_softmax(teacher / 3))
    # T^2, and 1 / T for the division of the logits: the size does not fall with T.
    torch.testing.assert_close(
        student.grad, torch.from_numpy(temperature * (own - other) / 4).float(), rtol=1e-4, atol=1e-6
    )


def test_a_high_temperature_compares_the_logits_themselves() -> None:
    # Hinton's limit: with logits of mean 0, T^2 KL tends to the squared distance over twice the classes.
    student, teacher = draw(0, 3, 8, scale=1.0), draw(1, 3, 8, scale=1.0)
    student, teacher = (one - one.mean(-1, keepdim=True) for one in (student, teacher))
    expected = (student - teacher).square().sum(-1).mean() / 16
    found = logit_distillation(student.double().float(), teacher, 300.0)
    # 1e-5 of KL is lost to float32 before it is multiplied by 90,000.
    assert found.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
@pytest.mark.parametrize("seed", range(4))
def test_the_distance_of_features(kind: str, seed: int) -> None:
    own, other = draw(seed, 6, 9), draw(seed + 10, 6, 9) + 2
    a, b = own.double().numpy(), other.double().numpy()
    if kind == "cosine":
        lengths = np.sqrt((a**2).sum(-1)) * np.sqrt((b**2).sum(-1))
        expected = (1 - (a * b).sum(-1) / lengths).mean()
    else:
        b = (b - b.mean(-1, keepdims=True)) / b.std(-1, keepdims=True)
        expected = ((a - b) ** 2).mean()
    assert feature_distance(own, other, kind).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_the_teachers_scale_does_not_matter(kind: str) -> None:
    own, other = draw(0, 4, 5), draw(1, 4, 5)
    distances = {round(feature_distance(own, factor * other, kind).item(), 5) for factor in (0.1, 1, 100)}
    assert len(distances) == 1


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_constant_features_are_no_division_by_zero(kind: str) -> None:
    own = torch.zeros(2, 4, requires_grad=True)
    found = feature_distance(own, torch.zeros(2, 4), kind)
    found.backward()
    assert found.isfinite()
    assert own.grad.isfinite().all()
    assert standardized(torch.full((1, 4), 3.0)).tolist() == [[0.0] * 4]


def test_nothing_flows_into_the_teacher() -> None:
    student = draw(0, 3, 4).requires_grad_()
    teacher = draw(1, 3, 4).requires_grad_()
    total = logit_distillation(student, teacher, 2.0) + feature_distance(student, teacher, "cosine")
    (total + feature_distance(student, teacher, "mse")).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_half_precision_is_compared_in_single() -> None:
    student, teacher = draw(0, 3, 4).bfloat16(), draw(1, 3, 4).bfloat16()
    for found in (
        logit_distillation(student, teacher, 2.0),
        feature_distance(student, teacher, "cosine"),
        feature_distance(student, teacher, "mse"),
    ):
        assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("alpha", "weight", "expected"), [(0.0, 0.0, 2.0), (1.0, 0.0, 3.0), (0.25, 0.0, 2.25), (0.5, 2.0, 12.5)]
)
def test_the_parts_are_weighed(alpha: float, weight: float, expected: float) -> None:
    parts = (torch.tensor(value) for value in (2.0, 3.0, 5.0))
    entropy, logits, features = parts
    assert distillation_loss(entropy, alpha, logits, weight, features).item() == pytest.approx(expected)


def test_a_part_of_no_weight_is_not_looked_at() -> None:
    nan = torch.tensor(float("nan"))
    assert distillation_loss(torch.tensor(2.0), 0.0, nan, 0.0, nan).item() == 2.0
    assert distillation_loss(nan, 1.0, torch.tensor(3.0)).item() == 3.0


def test_agreement_is_of_the_best_class() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 9.0], [0.0, 1.0]])
    assert agreements(student, teacher).tolist() == [True, False]
