"""Log-probabilities of chosen tokens in float64, straight from the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.token_statistics import log_softmax, statistics

Float = NDArray[np.float64]


def selected(logits: Float, token_ids: NDArray[np.int64], temperature: float = 1.0) -> tuple[Float, Float]:
    """log p of the tokens (rows, k), and each row's entropy (rows,)."""
    chosen = np.take_along_axis(log_softmax(logits, temperature), token_ids, -1)
    return chosen, statistics(logits, temperature)["entropy"]


def gradient(logits: Float, token_ids: NDArray[np.int64], upstream: Float, temperature: float = 1.0) -> Float:
    """Gradient of sum(upstream log p) in the logits; a token that stands twice counts twice."""
    p = np.exp(log_softmax(logits, temperature))
    result = np.zeros_like(p)
    for row, ids in enumerate(token_ids):
        for token, weight in zip(ids, upstream[row], strict=True):
            one_hot = np.arange(logits.shape[1]) == token
            result[row] += weight * (one_hot - p[row])
    return result / temperature
