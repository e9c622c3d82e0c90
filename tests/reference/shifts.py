"""What fine-tuning changed, in float64 from the definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def footprint(model: Float, base: Float, eta: float) -> NDArray[np.bool_]:
    """|w - w0| > eta max(|w|, |w0|)."""
    changed: NDArray[np.bool_] = abs(model - base) > eta * np.where(
        abs(model) > abs(base), abs(model), abs(base)
    )
    return changed


def pair(first: Float, second: Float, base: Float, eta: float) -> dict[str, float]:
    """Every measure of two models with footprints that meet."""
    a, b = footprint(first, base, eta), footprint(second, base, eta)
    x, y = first - base, second - base
    both = a & b
    p, q = a.mean(), b.mean()
    return {
        "changed_by_both": both.mean(),
        "jaccard": both.sum() / (a | b).sum(),
        "jaccard_random": p * q / (p + q - p * q),
        "sign_conflict": (x[both] * y[both] < 0).sum() / both.sum(),
        "cosine": angle(x, y),
        "cosine_overlap": angle(x[both], y[both]),
    }


def angle(x: Float, y: Float) -> float:
    """Cosine of two vectors."""
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def gain_cosine(base: Float, experts: list[Float], model: Float) -> float:
    """Of a model's gains and the largest of the experts'."""
    union = np.zeros_like(base)
    for expert in experts:
        union = np.maximum(union, expert - base)
    return angle(union, np.maximum(model - base, 0.0))
