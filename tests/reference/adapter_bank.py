"""A batch of tokens that each use their own adapter, in NumPy float64, one token at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def adapter_bank(
    x: Array, adapter_ids: NDArray[np.int64], down: Array, up: Array, scaling: Array, relu: bool
) -> tuple[Array, Array]:
    """Outputs (tokens, out), and the sum of the absolute terms behind each, which bounds the rounding error.

    down (n, hidden, in) and up (n, out, hidden) are the dequantised weights.
    """
    y = np.zeros((len(x), up.shape[1]))
    magnitude = np.zeros_like(y)
    for token, index in enumerate(adapter_ids):
        if index < 0:
            continue
        hidden = down[index] @ x[token]
        hidden = np.maximum(hidden, 0) if relu else hidden
        y[token] = scaling[index] * (up[index] @ hidden)
        hidden_magnitude = np.abs(down[index]) @ np.abs(x[token])
        magnitude[token] = abs(scaling[index]) * (np.abs(up[index]) @ hidden_magnitude)
    return y, magnitude
