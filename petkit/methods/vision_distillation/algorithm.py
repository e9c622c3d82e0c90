"""What a student learns from a teacher's logits and features: pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from petkit.losses.divergences import forward_kl

FeatureLoss = Literal["cosine", "mse"]

# Below it a norm or a standard deviation counts as this much: a constant feature has neither.
LEAST = 1e-6


def logit_distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's softened answers from the teacher's: T^2 KL(teacher || student).

    Args:
        student_logits: (batch, classes) float32, bfloat16 or float16.
        teacher_logits: likewise; no gradient flows into them.
        temperature: T; both sides are divided by it. Its square keeps the gradient's size.

    Returns:
        The mean over the batch in nats, a scalar, float32.

    Source:
        Hinton, Vinyals and Dean (2015), arXiv:1503.02531, section 2.
    """
    divergence = forward_kl(student_logits, teacher_logits.detach(), temperature=temperature)
    return temperature**2 * divergence


def feature_distance(projected: Tensor, teacher_features: Tensor, kind: FeatureLoss) -> Tensor:
    """Distance of the student's features, mapped to the teacher's width, from the teacher's.

    Args:
        projected: (batch, width), the linear map of the student's pooled features.
        teacher_features: (batch, width), pooled; no gradient flows into them.
        kind: cosine for 1 - cosine; mse for the mean square of the difference between the map's output and
            the teacher's features at mean 0 and variance 1 in each example.

    Returns:
        The mean over the batch (and of mse over the width), a scalar, float32.

    Source:
        Romero et al. (2015), arXiv:1412.6550, for a learnt map between widths; Wei et al. (2022),
        arXiv:2205.14141, for the teacher's features at mean 0 and variance 1. Their distance is a smooth L1
        of all tokens, ours a square of pooled features.
    """
    own, other = projected.float(), teacher_features.detach().float()
    if kind == "mse":
        return (own - standardized(other)).square().mean()
    products = (own * other).sum(-1)
    lengths: Tensor = own.norm(dim=-1).clamp_min(LEAST) * other.norm(dim=-1).clamp_min(LEAST)
    return (1 - products / lengths).mean()


def standardized(features: Tensor) -> Tensor:
    """Bring the features of each example to mean 0 and variance 1.

    Args:
        features: (batch, width).

    Returns:
        float32 of the same shape; 0 throughout where all features of an example are equal.

    Source:
        A layer norm without parameters; the variance is the mean square.
    """
    centred = features.float() - features.float().mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp_min(LEAST)


def distillation_loss(
    cross_entropy: Tensor,
    alpha: float,
    logit_term: Tensor | None = None,
    feature_weight: float = 0.0,
    feature_term: Tensor | None = None,
) -> Tensor:
    """Join what the labels, the teacher's logits and its features say.

    Args:
        cross_entropy: of the labels, a scalar in nats.
        alpha: weight of the logits against the labels, between 0 and 1.
        logit_term: of `logit_distillation`; needed where alpha is above 0.
        feature_weight: weight of the features.
        feature_term: of `feature_distance`; needed where their weight is above 0.

    Returns:
        (1 - alpha) cross_entropy + alpha logit_term + feature_weight feature_term. What has the weight 0 is
        left out, whatever it is.
    """
    total = torch.zeros_like(cross_entropy)
    for weight, term in ((1 - alpha, cross_entropy), (alpha, logit_term), (feature_weight, feature_term)):
        if weight:
            assert term is not None
            total = total + weight * term
    return total


def agreements(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Whether both prefer the same class: bool (batch,), of logits (batch, classes) each."""
    return student_logits.argmax(-1) == teacher_logits.argmax(-1)
