"""Low-bit quantiser in NumPy float64, written from its equations. It shares no code with petkit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

EPSILON = 1e-5

Array = NDArray[np.float64]


def is_optimal(levels: Array, tolerance: float) -> bool:
    """Are the levels the conditional medians of a standard normal variable's nearest-level cells?"""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    inside = norm.cdf(edges)
    medians = norm.ppf((inside[1:] + inside[:-1]) / 2)
    return bool(np.abs(levels - medians).max() <= tolerance)


def mean_error(levels: Array) -> float:
    """E|n - Q(n)| for a standard normal n: cell by cell, the integral of |n - v| against the density."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    total = 0.0
    for low, high, level in zip(edges[:-1], edges[1:], levels, strict=True):
        for start, end, sign in ((low, min(level, high), -1.0), (max(level, low), high, 1.0)):
            mass = norm.cdf(end) - norm.cdf(start)
            first_moment = norm.pdf(start) - norm.pdf(end)
            total += sign * (first_moment - level * mass)
    return total


def quantize(weight: Array, levels: Array) -> tuple[NDArray[np.int64], float, float]:
    """Codes, mean and unbiased standard deviation; the nearest level, the lower one of two equally near."""
    mean, std = float(weight.mean()), float(weight.std(ddof=1))
    normalised = (weight - mean) / (std + EPSILON)
    distance = np.abs(normalised[..., None] - levels)
    return distance.argmin(-1), mean, std


def codes_given(weight: Array, mean: float, std: float, levels: Array) -> NDArray[np.int64]:
    """Codes for a given mean and deviation, by counting the midpoints that a weight exceeds."""
    thresholds = mean + (std + EPSILON) * (levels[1:] + levels[:-1]) / 2
    return (weight[..., None] > thresholds).sum(-1)


def dequantize(codes: NDArray[np.int64], mean: float, std: float, levels: Array) -> Array:
    """The weights that codes stand for."""
    return mean + std * levels[codes]


def pack_rows(codes: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Row-aligned packing, bit by bit: code j of a row starts at bit j * bits, lowest bit first."""
    rows, columns = codes.shape
    packed = np.zeros((rows, -(-columns * bits // 8)), np.uint8)
    for row, column in np.ndindex(rows, columns):
        for bit in range(bits):
            place = column * bits + bit
            packed[row, place // 8] |= ((int(codes[row, column]) >> bit) & 1) << (place % 8)
    return packed


def unpack_rows(packed: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.int64]:
    """The inverse of `pack_rows`."""
    as_bits = np.unpackbits(packed, axis=-1, bitorder="little")[..., : columns * bits]
    weights = 1 << np.arange(bits)
    return as_bits.reshape(*packed.shape[:-1], columns, bits).astype(np.int64) @ weights


def surrogate(weight: Array, held: Array) -> Array:
    """mean + std * (n + held), whose derivative is the straight-through gradient; held = q - n."""
    mean, std = weight.mean(), weight.std(ddof=1)
    return mean + std * ((weight - mean) / (std + EPSILON) + held)


def fake_quantize_gradient(weight: Array, gradient: Array, levels: Array, step: float = 1e-5) -> Array:
    """Derivative of sum(gradient * surrogate) by central differences, the rounding error held constant."""
    codes, mean, std = quantize(weight, levels)
    held = levels[codes] - (weight - mean) / (std + EPSILON)
    result = np.zeros_like(weight)
    for place in np.ndindex(*weight.shape):
        change = np.zeros_like(weight)
        change[place] = step
        difference = surrogate(weight + change, held) - surrogate(weight - change, held)
        result[place] = (gradient * difference).sum() / (2 * step)
    return result
