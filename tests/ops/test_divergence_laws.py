"""What holds of every divergence: TRL's count of beta, and laws that follow from the definitions."""

from __future__ import annotations

import os
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.ops import divergence
from tests.ops.row_cases import BETAS, NATS, exact, pair
from tests.ops.row_cases import divergence_gradient as gradient_of
from tests.reference import divergence as reference


@pytest.fixture(scope="module")
def trl_loss():
    """TRL's own loss; its import warns of this and that."""
    pytest.importorskip("trl")
    before = os.environ.get("TRL_EXPERIMENTAL_SILENCE")
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd import GKDTrainer
    if before is None:
        del os.environ["TRL_EXPERIMENTAL_SILENCE"]
    return GKDTrainer.generalized_jsd_loss


class TestAgainstTrl:
    """beta and temperature mean what they mean in TRL's GKDTrainer."""

    LABELS: ClassVar = torch.tensor([[5, -100, 1], [2, 0, -100]])

    @pytest.mark.parametrize("temperature", [0.7, 1.0])
    @pytest.mark.parametrize("beta", BETAS)
    def test_loss_and_gradient(self, trl_loss, kernels, beta, temperature):
        student, teacher = pair(2, 3, 300)
        wide = student.double().requires_grad_()
        expected = trl_loss(wide, teacher.double(), self.LABELS, beta, temperature)
        expected.backward()
        live = student.clone().requires_grad_()
        mask = self.LABELS != -100
        loss = divergence(live, teacher, beta, mask, temperature).loss.sum() / mask.sum()
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6, abs=NATS)
        np.testing.assert_allclose(exact(live.grad), exact(wide.grad), rtol=0, atol=3e-6)

    @pytest.mark.parametrize("beta", BETAS)
    def test_each_row_in_float32(self, trl_loss, kernels, beta):
        student, teacher = pair(2, 3, 300)
        rows = trl_loss(student, teacher, beta=beta, reduction="none").sum(-1)
        # Both are off by float32's rounding.
        torch.testing.assert_close(divergence(student, teacher, beta).loss, rows, rtol=1e-5, atol=1e-5)


logits = st.floats(-50, 50, width=32)
pairs = st.lists(st.tuples(logits, logits), min_size=1, max_size=40).map(
    lambda rows: tuple(torch.tensor([row]) for row in zip(*rows, strict=True))
)
betas = st.floats(0, 1, width=32)
inner = st.floats(2.0**-7, 1 - 2.0**-7, width=32)


@given(pairs, betas)
def test_no_divergence_is_negative_and_none_is_between_equals(sides, beta):
    student, teacher = sides
    for part in divergence(student, teacher, beta):
        assert float(part) >= -1e-6
    for part in divergence(student, student.clone(), beta):
        assert abs(float(part)) <= 1e-6


@given(pairs)
def test_swapping_the_sides_swaps_the_ends_of_beta(sides):
    student, teacher = sides
    one, other = divergence(student, teacher, 0), divergence(teacher, student, 1)
    assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-6, abs=1e-6)
    assert torch.equal(one.loss, one.forward_kl)
    assert torch.equal(other.loss, other.reverse_kl)


@given(pairs, inner)
def test_swapping_the_sides_mirrors_beta(sides, beta):
    student, teacher = sides
    one, other = divergence(student, teacher, beta), divergence(teacher, student, 1 - beta)
    assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-5, abs=3e-6)
    assert float(one.forward_kl) == pytest.approx(float(other.reverse_kl), rel=1e-6, abs=1e-6)


@given(pairs, inner)
def test_a_mixture_hides_at_most_its_own_entropy(sides, beta):
    loss = float(divergence(*sides, beta).loss)
    assert loss <= reference.binary_entropy(beta) + 1e-6
    bound = beta * reference.divergence(*(exact(side) for side in sides), 0)["loss"][0]
    bound += (1 - beta) * reference.divergence(*(exact(side) for side in sides), 1)["loss"][0]
    assert loss <= bound * (1 + 1e-6) + 1e-6


@given(pairs, betas, st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_adding_a_constant_to_a_row_changes_nothing(sides, beta, of_student, of_teacher):
    # Sixteenths, so that no logit is rounded by the addition.
    student, teacher = ((side * 16).round() / 16 for side in sides)
    one = divergence(student, teacher, beta)
    two = divergence(student + of_student, teacher + of_teacher, beta)
    for before, after in zip(one, two, strict=True):
        assert torch.equal(before, after)


@given(pairs, betas, st.floats(0.25, 4, width=16))
def test_the_gradient_of_a_row_sums_to_zero(sides, beta, temperature):
    gradient, _ = gradient_of(*sides, torch.ones(1), beta, temperature=temperature)
    # Terms are as large as the logits' differences over the square of the temperature, at most 1,600.
    assert float(gradient.double().sum()) == pytest.approx(0, abs=1e-6 * 1600)
