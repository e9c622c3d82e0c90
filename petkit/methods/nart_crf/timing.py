"""How long a sentence takes when it comes alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from petkit.methods.nart_crf.decoding import Found, Translator

# Sentences that are translated before the clock runs: memory and threads are there afterwards.
WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds a sentence, from its text to its translation's text."""

    median: float
    p90: float
    p99: float
    mean: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Of measured seconds, at least one."""
        found = (*np.percentile(seconds, (50, 90, 99)), np.mean(seconds))
        return cls(*(float(1000 * value) for value in found))


def one_by_one(
    translator: Translator, sources: Sequence[str], advance: Callable[[int], None] | None = None
) -> tuple[list[Found], Latency]:
    """Translate sentences one after the other, as they would come from a user.

    Args:
        translator: the model, and how it is asked.
        sources: at least one.
        advance: told how many more are done.

    Returns:
        Their translations, and how long one took.
    """
    for source in sources[:WARM_UP]:
        translator.translate([source], 1)
    found, seconds = [], []
    for source in sources:
        started = time.perf_counter()
        own = translator.translate([source], 1)
        translator.texts(own)
        seconds.append(time.perf_counter() - started)
        found += own
        if advance is not None:
            advance(1)
    return found, Latency.of(seconds)
