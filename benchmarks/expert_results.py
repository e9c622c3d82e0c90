"""Intervals and tables of what merged_experts.py measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

MIXED = "mixed"
RESAMPLES = 2000


def summary(
    own: dict[str, np.ndarray], found: dict[str, dict[str, np.ndarray]], names: list[str]
) -> dict[str, Any]:
    """Accuracies with Wilson's intervals; averages and paired differences with bootstrap intervals."""
    experts = {name: found[f"expert: {name}"][name] for name in names}
    draws = [weights(len(own[name]), name) for name in names]

    def resampled(of: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.stack([draw @ of[name] / len(of[name]) for draw, name in zip(draws, names, strict=True)])

    mine, theirs = resampled(own), resampled(experts)

    def mean(of: Mapping[str, np.ndarray]) -> float:
        return float(np.mean([of[name].mean() for name in names]))

    def minus(other: Mapping[str, np.ndarray]) -> dict[str, Any]:
        interval = ends((mine - resampled(other)).mean(0))
        return {"value": mean(own) - mean(other), "interval": interval}

    share = float(np.mean([own[name].mean() / experts[name].mean() for name in names]))
    return {
        "accuracy": {name: wilson(int(own[name].sum()), len(own[name])) for name in names},
        "average": {"value": mean(own), "interval": ends(mine.mean(0))},
        "of_experts": {"value": share, "interval": ends((mine / theirs).mean(0))},
        "minus_mixed": minus(found[MIXED]),
        "minus_linear": minus(found["linear"]),
    }


def weights(count: int, name: str) -> np.ndarray:
    """How often each test item is in each resample, the same for all systems."""
    source = np.random.default_rng([0, *name.encode()])
    return source.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def ends(values: np.ndarray) -> list[float]:
    """The middle 95 % of resamples."""
    return [float(value) for value in np.percentile(values, (2.5, 97.5))]


def wilson(right: int, count: int) -> dict[str, Any]:
    """A share and its 95 % interval."""
    z, share = 1.959964, right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return {"value": share, "interval": [centre - half, centre + half], "right": right, "of": count}


def tables(content: dict[str, Any]) -> Iterator[str]:
    """Markdown: a table for each family and kind."""
    for family, found in content["families"].items():
        names = list(found["domains"])
        for kind in ("full", "adapter"):
            yield f"\n{family}, {kind}\n"
            yield f"| system | {' | '.join(names)} | average | of the experts' | minus mixed | minus linear |"
            yield "|---|" + "---|" * (len(names) + 4)
            yield from (table_row(row, names) for row in found[kind]["rows"])


def table_row(row: dict[str, Any], names: list[str]) -> str:
    """One system, in per cent with the halves of its intervals."""
    cells = [row["accuracy"][name] for name in names] + [row["average"], row["of_experts"]]
    shown = [
        f"{100 * cell['value']:.1f} ± {50 * (cell['interval'][1] - cell['interval'][0]):.1f}"
        for cell in cells
    ]
    for name in ("minus_mixed", "minus_linear"):
        low, high = (100 * end for end in row[name]["interval"])
        shown.append(f"{100 * row[name]['value']:+.1f} ({low:+.1f} to {high:+.1f})")
    return f"| {row['system']} | {' | '.join(shown)} |"
