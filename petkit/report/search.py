"""The curve of a search over numbers: what was tried, and the best so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from petkit.report.figures import colour, finish, marker, need, new_figure, save

# Panels beside the curve, each of a number that was searched.
MOST_SLICES = 3
_FEWEST_FOR_SLICES = 5


def search_curve(trials: Sequence[Mapping[str, Any]], maximize: bool, out_png: Path) -> Path:
    """Draw the score of each trial with the best so far, and the score over the numbers that matter most.

    Args:
        trials: in their order, the first of which is the baseline; each has `score` (None where it failed)
            and `parameters` by name.
        maximize: a larger score is better.
        out_png: file to write.

    Returns:
        The file.

    Raises:
        InputError: no trial has a score.
    """
    scored = [(number, one) for number, one in enumerate(trials) if one["score"] is not None]
    need(scored, "trials with a score")
    scores = np.array([one["score"] for _, one in scored], dtype=float)
    names = _weightiest([one["parameters"] for _, one in scored], scores)
    figure, all_axes = new_figure(1 + len(names))
    _curve(all_axes[0], trials, scored, maximize)
    for axes, name in zip(all_axes[1:], names, strict=True):
        values = [one["parameters"][name] for _, one in scored]
        axes.scatter(values, scores, color=colour(0), s=14, marker=marker(0))
        best = int(scores.argmax() if maximize else scores.argmin())
        axes.scatter(values[best], scores[best], color=colour(1), s=60, marker=marker(10))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        finish(axes, name, "score", legend=False)
    return save(figure, out_png)


def _curve(
    axes: Axes, trials: Sequence[Mapping[str, Any]], scored: Sequence[tuple[int, Any]], maximize: bool
) -> None:
    numbers = [number for number, _ in scored]
    scores = np.array([one["score"] for _, one in scored], dtype=float)
    best = np.maximum.accumulate(scores) if maximize else np.minimum.accumulate(scores)
    axes.plot(numbers, scores, marker(0), color=colour(5), markersize=4, label="trial")
    axes.step(numbers, best, where="post", color=colour(1), linewidth=1.4, label="best so far")
    if trials[0]["score"] is not None:
        axes.axhline(trials[0]["score"], color=colour(6), linewidth=1.0, linestyle="--", label="baseline")
    failed = [number for number, one in enumerate(trials) if one["score"] is None]
    if failed:
        worst = scores.min() if maximize else scores.max()
        axes.plot(failed, [worst] * len(failed), "x", color=colour(10), markersize=5, label="failed")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    finish(axes, "trial", "score")


def _weightiest(values: Sequence[Mapping[str, float]], scores: np.ndarray[Any, Any]) -> list[str]:
    """The numbers whose parabola explains most of the score, each by itself; none of a handful of trials."""
    if len(scores) < _FEWEST_FOR_SLICES or np.ptp(scores) == 0:
        return []
    explained = {}
    for name in values[0]:
        own = np.array([one[name] for one in values], dtype=float)
        if np.ptp(own) == 0:
            continue
        own = (own - own.min()) / np.ptp(own)
        terms = np.stack([np.ones_like(own), own, own**2], axis=1)
        fitted = terms @ np.linalg.lstsq(terms, scores, rcond=None)[0]
        explained[name] = float(((fitted - scores.mean()) ** 2).sum())
    return sorted(explained, key=lambda name: -explained[name])[:MOST_SLICES]
