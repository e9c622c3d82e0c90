"""Merging of models in float64, from the definitions, and the random numbers that thin differences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

MASK = 2**64 - 1


def random_bits(key: int, place: int) -> int:
    """SplitMix64 (Steele, Lea and Flood 2014) at state key + (place + 1) step, in whole numbers of Python."""
    state = (key + (place + 1) * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def uniform(key: int, start: int, count: int) -> Float:
    """Multiples of 2^-24 in [0, 1): the upper 24 of the random bits."""
    return np.array([(random_bits(key, place) >> 40) / 2**24 for place in range(start, start + count)], float)


def linear(models: Float, weights: Float) -> Float:
    """Sum of models (n, count) by weight."""
    return (weights[:, None] * models).sum(0)


def weighted(
    base: Float, models: Float, weights: Float, low: Float, high: Float, uniforms: Float, keep: Float
) -> Float:
    """w_i d_i of every model, (n, count); `uniforms` (n, count) are 0 where all are kept."""
    deltas = models - base
    size = np.abs(deltas)
    # True of nan: what is missing must show.
    kept = ~((size < low[:, None]) | (size > high[:, None]) | (uniforms >= keep[:, None])) | np.isnan(deltas)
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = deltas / np.minimum(keep, 1.0)[:, None]
    return weights[:, None] * np.where(kept, grown, 0.0)


def merged(
    base: Float, parts: Float, weights: Float, consensus: str, normalize: bool, factor: float
) -> tuple[Float, Float]:
    """The merge of weighted differences (n, count), and how large the terms are that it sums."""
    agrees = np.ones(parts.shape, bool)
    if consensus != "none":
        votes = (np.sign(parts) if consensus == "count" else parts).sum(0)
        elected = np.where(votes >= 0, 1.0, -1.0)
        agrees = (np.sign(parts) == elected) | np.isnan(parts)
    divisor = np.ones(parts.shape[1])
    if normalize:
        divisor = (weights[:, None] * agrees).sum(0)
        divisor = np.where(np.abs(divisor) < 1e-8, 1.0, divisor)
    chosen = np.where(agrees, parts, 0.0)
    with np.errstate(invalid="ignore"):
        result = base + factor * chosen.sum(0) / divisor
        magnitude = np.abs(base) + np.abs(factor) * np.abs(chosen).sum(0) / np.abs(divisor)
    return result, magnitude


def magnitude_counts(
    base: NDArray[np.float32], models: NDArray[np.float32], prefix: list[int]
) -> NDArray[np.int64]:
    """Histograms (n, 65536) of the halves of |model - base|."""
    counts = np.zeros((len(models), 1 << 16), np.int64)
    for row, (model, upper) in enumerate(zip(models, prefix, strict=True)):
        with np.errstate(invalid="ignore"):
            bits = np.abs(model - base).view(np.uint32)
        chosen = bits >> 16 if upper < 0 else (bits & 0xFFFF)[bits >> 16 == upper]
        np.add.at(counts[row], chosen.astype(np.int64), 1)
    return counts


def magnitudes_within(
    base: NDArray[np.float32],
    models: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Counts (n, 4) of |model - base| below low, at it, between and at a higher high; those between."""
    counts, values = [], []
    for model, least, most in zip(models, low, high, strict=True):
        with np.errstate(invalid="ignore"):
            sizes = np.abs(model - base)
        inside = sizes[(least < sizes) & (sizes < most)]
        at_high = (sizes == most).sum() if most != least else 0
        counts.append([(sizes < least).sum(), (sizes == least).sum(), len(inside), at_high])
        values.append(inside)
    return np.array(counts, np.int64), np.concatenate(values)


def finite_rows(models: Float) -> NDArray[np.bool_]:
    """Whether all numbers of each row are finite."""
    return np.isfinite(models).all(1)
