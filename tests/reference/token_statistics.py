"""Softmax statistics in float64, straight from their definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def log_softmax(logits: Float, temperature: float = 1.0) -> Float:
    """log p of each token, (rows, vocab)."""
    scaled = logits / temperature
    with np.errstate(invalid="ignore"):
        shifted = scaled - scaled.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def statistics(logits: Float, temperature: float = 1.0) -> dict[str, Float]:
    """log_z, entropy, varentropy and max_prob of each row; 0 log 0 counts as 0."""
    log_p = log_softmax(logits, temperature)
    p = np.exp(log_p)
    finite = np.where(p > 0, log_p, 0.0)
    entropy = -(p * finite).sum(-1)
    scaled = logits / temperature
    peak = scaled.max(-1)
    return {
        "log_z": peak + np.log(np.exp(scaled - peak[:, None]).sum(-1)),
        "entropy": entropy,
        "varentropy": (p * np.where(p > 0, log_p + entropy[:, None], 0.0) ** 2).sum(-1),
        "max_prob": p.max(-1),
    }


def largest(logits: Float, k: int) -> NDArray[np.int64]:
    """Positions of the k largest logits of each row, of equal ones the first."""
    return np.argsort(-logits, axis=-1, kind="stable")[:, :k]


def gradient(
    logits: Float,
    token_ids: NDArray[np.int64],
    upstream: tuple[Float, Float, Float],
    temperature: float = 1.0,
) -> Float:
    """Gradient in the logits of sum(a log_z + b entropy + c log_prob), (a, b, c) = upstream, each (rows,)."""
    log_p = log_softmax(logits, temperature)
    p = np.exp(log_p)
    entropy = statistics(logits, temperature)["entropy"]
    of_entropy = -p * (np.where(p > 0, log_p, 0.0) + entropy[:, None])
    one_hot = np.zeros_like(p)
    one_hot[np.arange(len(p)), token_ids] = 1
    a, b, c = (part[:, None] for part in upstream)
    return (a * p + b * of_entropy + c * (one_hot - p)) / temperature
