"""Adapters and pooling in NumPy float64, written from their equations. It shares no code with petkit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# The single level of one bit is the median of a half-normal variable.
ONE_BIT_LEVEL = 0.6744897501960817


def one_bit(weight: Array) -> Array:
    """mu + sigma * level * sign, with the unbiased deviation; exactly the mean goes to the lower level."""
    mean, deviation = weight.mean(), weight.std(ddof=1)
    return mean + deviation * np.where(weight > mean, ONE_BIT_LEVEL, -ONE_BIT_LEVEL)


def bottleneck(x: Array, down: Array, up: Array, scale: float, rectify: bool) -> Array:
    """scale * W_up act(W_down x) for rows x."""
    hidden = x @ down.T
    if rectify:
        hidden = np.maximum(hidden, 0.0)
    return scale * hidden @ up.T


def pooled(hidden: Array, mask: NDArray[np.int64], pooling: str) -> Array:
    """One row per sequence: its first token, the mean of its tokens, or its last token."""
    rows = []
    for states, present in zip(hidden, mask, strict=True):
        tokens = states[present.astype(bool)]
        rows.append({"cls": states[0], "mean": tokens.mean(axis=0), "last": tokens[-1]}[pooling])
    return np.stack(rows)
