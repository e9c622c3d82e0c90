"""Intervals that go beside every reported number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from petkit.errors import InputError


@dataclass(frozen=True)
class Interval:
    """An estimate with the two ends of its interval, all in the unit of the values it came from."""

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's length: the number after the plus-minus sign."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a number measured once per seed, with its t-interval.

    Args:
        values: one number per seed, any unit.
        confidence: coverage, strictly between 0 and 1.

    Returns:
        The mean and its interval in the unit of the values; with one value the ends are NaN, because one run
        says nothing of the spread.

    Raises:
        InputError: no value, a value that is not finite, or a confidence outside (0, 1).

    Source:
        Student's t over n - 1 degrees of freedom.
    """
    if not values:
        raise InputError("values must hold at least one number, got none: name at least one seed")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"values must be finite, got {list(values)}")
    mean = math.fsum(values) / len(values)
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be strictly between 0 and 1, got {confidence}")
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half)
