"""Intervals that go beside every reported number: over seeds, and between two systems on the same inputs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

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


def student_t_cdf(value: float, degrees: int) -> float:
    """Probability that Student's t is at most `value`.

    Args:
        value: any finite number.
        degrees: degrees of freedom, an integer of at least 1.

    Returns:
        A probability in [0, 1].

    Raises:
        InputError: `degrees` is below 1.

    Source:
        The finite series for integer degrees, Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even).
    """
    if degrees < 1:
        raise InputError(
            f"degrees must be at least 1, got {degrees}: an interval over seeds needs two seeds or more"
        )
    angle = math.atan(value / math.sqrt(degrees))
    cosine_squared, odd = math.cos(angle) ** 2, degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(degrees // 2):
        total += term
        term *= cosine_squared * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return 0.5 + inside / 2


def student_t_quantile(probability: float, degrees: int) -> float:
    """Value that Student's t stays below with the given probability.

    Args:
        probability: strictly between 0 and 1.
        degrees: degrees of freedom, an integer of at least 1.

    Returns:
        The quantile, to about 1e-12 of its size.

    Raises:
        InputError: the probability is not inside (0, 1), or `degrees` is below 1.

    Source:
        Bisection on the exact distribution function.
    """
    if not 0 < probability < 1:
        raise InputError(f"probability must be strictly between 0 and 1, got {probability}")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while student_t_cdf(high, degrees) < probability:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if student_t_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


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
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = student_t_quantile((1 + confidence) / 2, len(values) - 1) * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half)


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean difference of two systems scored on the same examples, with its percentile interval.

    Args:
        first: score per example of one system.
        second: score per example of the other, in the same order.
        seed: root of the resampling.
        resamples: bootstrap samples, at least 1.
        confidence: coverage, strictly between 0 and 1.

    Returns:
        mean(first - second) and its interval, in the unit of the scores; an interval without 0 is one
        that the choice of test examples does not explain.

    Raises:
        InputError: lengths differ, no example, or a number out of range.

    Source:
        Efron and Tibshirani (1993), percentile bootstrap over paired examples.
    """
    if len(first) != len(second) or not first:
        raise InputError(f"both systems need scores of the same examples, got {len(first)} and {len(second)}")
    if resamples < 1 or not 0 < confidence < 1:
        raise InputError(f"resamples must be >= 1 and confidence in (0, 1), got {resamples} and {confidence}")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    generator = random.Random(seed)
    size = len(differences)
    means = sorted(math.fsum(generator.choices(differences, k=size)) / size for _ in range(resamples))
    tail = (1 - confidence) / 2
    low, high = math.floor(tail * (resamples - 1)), math.ceil((1 - tail) * (resamples - 1))
    return Interval(math.fsum(differences) / size, means[low], means[high])
