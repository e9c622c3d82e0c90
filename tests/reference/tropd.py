"""Distillation's objectives from their equations, token by token, in float64.

S and T are a student's and a teacher's log-probabilities of the tokens, R = T - S.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST = math.log(1e-12)


def rewards(student: Floats, teacher: Floats) -> Floats:
    """R, of a teacher that finds nothing less likely than 1e-12."""
    return np.maximum(teacher, LEAST) - student


def acceptance(student: Floats, teacher: Floats) -> Floats:
    """min(pi_T / pi_S, 1)."""
    return np.minimum(np.exp(rewards(student, teacher)), 1.0)


def hard(student: Floats, teacher: Floats, threshold: float) -> Floats:
    """1 where R reaches the threshold."""
    return (rewards(student, teacher) >= threshold).astype(np.float64)


def top_k_forward_kl(student_top: Floats, teacher_top: Floats, tail: str = "none") -> Floats:
    """Sum over the last dimension of p (log p - log q)."""
    p, q = np.exp(teacher_top), np.exp(student_top)
    rest_p, rest_q = 1 - p.sum(-1), 1 - q.sum(-1)
    if tail == "renormalize":
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    value = np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - np.log(q)), 0.0).sum(-1)
    return value + rest_p * np.log(rest_p / rest_q) if tail == "bucket" else value


def tropd_tokens(
    student: Floats,
    teacher: Floats,
    student_top: Floats,
    teacher_top: Floats,
    prefix: NDArray[np.bool_],
    trust: Floats,
    beta: float,
    outlier: str,
    floor: float,
    tail: str = "none",
) -> tuple[Floats, Floats, Floats]:
    """Each token's loss, its slope in S, and its slopes in the student's top log-probabilities."""
    gain = rewards(student, teacher)
    out = 1 - trust
    worth = {"fkl": 0 * gain, "mask": 0 * gain, "rkl": gain, "clip": np.maximum(gain, floor)}[outlier]
    slope = -trust * gain - out * worth
    loss = slope * student
    top_slope = np.zeros_like(student_top)
    if outlier == "fkl":
        loss = loss + out * top_k_forward_kl(student_top, teacher_top, tail)
        top_slope = -out[..., None] * np.exp(teacher_top)
    loss = np.where(prefix, beta * (np.maximum(teacher, LEAST) - student), loss)
    return loss, np.where(prefix, -beta, slope), np.where(prefix[..., None], 0.0, top_slope)


def prefix_length(step: int, total: int, longest: int) -> int:
    """Half a cosine from the longest to 0."""
    exact = longest * (1 + math.cos(math.pi * min(step, total) / total)) / 2
    nearest = round(exact)
    return nearest if abs(exact - nearest) < 1e-6 else math.floor(exact)


def total_variation(p: Floats, q: Floats) -> float:
    """Half the sum of differences."""
    return float(np.abs(p - q).sum() / 2)


def reverse_kl(p_student: Floats, p_teacher: Floats) -> float:
    """KL(student || teacher)."""
    return float((p_student * np.log(p_student / p_teacher)).sum())


def reverse_kl_slope(p_student: Floats, p_teacher: Floats) -> Floats:
    """Its gradient in the student's logits: q (log q / p - KL)."""
    ratio = np.log(p_student / p_teacher)
    return p_student * (ratio - (p_student * ratio).sum())


def forward_kl_slope(p_student: Floats, p_teacher: Floats) -> Floats:
    """The gradient of KL(teacher || student) in the student's logits: q - p."""
    return p_student - p_teacher


def jsd_slope(p_student: Floats, p_teacher: Floats, beta: float) -> Floats:
    """The same of beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q."""
    if beta == 0:
        return forward_kl_slope(p_student, p_teacher)
    if beta == 1:
        return reverse_kl_slope(p_student, p_teacher)
    mixture = beta * p_teacher + (1 - beta) * p_student
    ratio = np.log(p_student / mixture)
    return (1 - beta) * p_student * (ratio - (p_student * ratio).sum())


def kept_by_entropy(entropies: Floats, part: float) -> NDArray[np.bool_]:
    """The highest so many of one dimension, at least one; equal ones stand or fall together."""
    count = max(1, math.ceil(round(part * len(entropies), 9)))
    return entropies >= np.sort(entropies)[::-1][count - 1]
