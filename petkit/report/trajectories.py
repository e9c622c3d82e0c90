"""Routing in pictures: entropy over tokens by regime, the descriptors' planes, accuracy against tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petkit.report.figures import colour, finish, marker, need, new_figure, percent_axis, save

REGIMES = ("convergent", "exploratory", "overload")
DESCRIPTORS = ("cumulative", "spearman", "von_neumann")
LABELS = {
    "cumulative": "cumulative entropy (nats)",
    "spearman": "Spearman trend",
    "von_neumann": "von Neumann ratio",
}

# Tokens and accuracy, each with the ends of its interval.
Point = tuple[tuple[float, float, float], tuple[float, float, float]]
# Of an axis: points that are nearer to each other are drawn as one.
SAME = 0.02
# Markers that look smaller than others of their size.
WIDER = {"*": 1.5, "<": 1.1, ">": 1.1}
# Inches of a line of a legend.
LINE = 0.17

# What an axis shows whatever the points are.
ORIENTATION = {"cumulative": (0.0,), "spearman": (-0.5, 0.5), "von_neumann": (1.0, 3.0)}


def draw_traces(traces: Sequence[tuple[str, Sequence[float]]], out_png: Path) -> Path:
    """Draw every trajectory in its regime's colour, and each regime's mean in a thick line.

    Args:
        traces: pairs of regime and entropies in nats.
        out_png: file to write.

    Returns:
        The file.

    Raises:
        InputError: there is no trajectory.
    """
    need(traces, "traces")
    figure, (axes,) = new_figure(1)
    for index, regime in enumerate(REGIMES):
        own = [values for name, values in traces if name == regime and len(values)]
        # The more lines, the fainter each, so that the means can be seen through hundreds.
        faint = min(0.25, 10 / max(len(own), 1))
        for values in own:
            axes.plot(range(1, len(values) + 1), values, color=colour(index), alpha=faint, linewidth=0.8)
        if own:
            means = _column_means(own)
            label = f"{regime} ({len(own)})"
            axes.plot(
                range(1, len(means) + 1), means, color=colour(index), linewidth=2.4, label=label, zorder=3
            )
    finish(axes, "token", "entropy (nats)")
    return save(figure, out_png)


def draw_planes(
    items: Sequence[Mapping[str, float | str]],
    out_png: Path,
    thresholds: Mapping[str, Any] | None = None,
) -> Path:
    """Draw the points in the three pairs of descriptors, in the colour of their regimes.

    Args:
        items: the three descriptors and `regime` of each question.
        out_png: file to write.
        thresholds: of the descriptors, by their names; drawn as lines.

    Returns:
        The file.

    Raises:
        InputError: there is no point.
    """
    need(items, "items")
    figure, panels = new_figure(3)
    pairs = ((0, 1), (1, 2), (0, 2))
    lines = _threshold_lines(thresholds)
    limits = {name: _limits([float(item[name]) for item in items], name, lines[name]) for name in DESCRIPTORS}
    for number, (axes, (x, y)) in enumerate(zip(panels, pairs, strict=True)):
        for index, regime in enumerate(REGIMES):
            own = [item for item in items if item["regime"] == regime]
            across, up = ([float(item[DESCRIPTORS[axis]]) for item in own] for axis in (x, y))
            if own:
                axes.scatter(
                    across, up, s=14, alpha=0.6, color=colour(index), marker=marker(index), label=regime
                )
        for draw, name in ((axes.axvline, DESCRIPTORS[x]), (axes.axhline, DESCRIPTORS[y])):
            for value in lines[name]:
                draw(value, color="#777777", linewidth=0.9, linestyle="--", zorder=1)
        axes.set_xlim(*limits[DESCRIPTORS[x]])
        axes.set_ylim(*limits[DESCRIPTORS[y]])
        finish(axes, LABELS[DESCRIPTORS[x]], LABELS[DESCRIPTORS[y]], legend=number == 0)
    return save(figure, out_png)


def _threshold_lines(thresholds: Mapping[str, Any] | None) -> dict[str, list[float]]:
    """Where the rule's inequalities change, by descriptor; a trend's band has two ends."""
    if thresholds is None:
        return {name: [] for name in DESCRIPTORS}
    band = float(thresholds["spearman"])
    return {
        "cumulative": [float(thresholds["cumulative"])],
        "spearman": [-band, band],
        "von_neumann": [float(thresholds["von_neumann"])],
    }


def _limits(values: Sequence[float], name: str, lines: Sequence[float]) -> tuple[float, float]:
    """An axis that shows all points and thresholds, and as much as lets a single point be placed."""
    shown = [*values, *lines, *ORIENTATION[name]]
    low, high = min(shown), max(shown)
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def draw_frontier(policies: Sequence[Mapping[str, object]], out_png: Path) -> Path:
    """Draw accuracy against tokens for each policy, with 95 % intervals, and the frontier of the best.

    Args:
        policies: records with `policy`, `accuracy` and `tokens`, the last two with mean, low and high.
        out_png: file to write.

    Returns:
        The file.

    Raises:
        InputError: there is no policy.
    """
    need(policies, "policies")
    points = [(_spread(one["tokens"]), _spread(one["accuracy"])) for one in policies]
    figure, (axes,) = new_figure(1)
    # The legend has a line for each policy; more than a few would leave no room for the axes.
    figure.set_figheight(figure.get_figheight() + LINE * max(0, len(policies) // 2 - 2))
    for index, (tokens, score) in enumerate(points):
        axes.errorbar(
            tokens[0], score[0], xerr=_bar(tokens), yerr=_bar(score), color=colour(index), linestyle="none",
            elinewidth=0.7, capsize=1.5, alpha=0.7, zorder=2,
        )  # fmt: skip
    for group in _coinciding(points):
        own, shape = points[group[0]], marker(group[0])
        axes.plot(
            own[0][0], own[1][0], color=colour(group[0]), marker=shape, markersize=7 * WIDER.get(shape, 1),
            markeredgecolor="white", markeredgewidth=0.6, linestyle="none", zorder=4,
            label=_group_label([(str(policies[place]["policy"]), points[place]) for place in group]),
        )  # fmt: skip
    # Nothing that can be built lies on the oracle's line.
    built = [(x[0], y[0]) for (x, y), one in zip(points, policies, strict=True) if one["policy"] != "oracle"]
    if built:
        axes.plot(*zip(*_frontier(built), strict=True), color="#999999", linewidth=1, zorder=1)
    percent_axis(axes)
    finish(axes, "tokens a question, probe included", "accuracy")
    return save(figure, out_png)


def _coinciding(points: Sequence[Point]) -> list[list[int]]:
    """Places of points; those whose markers would hide each other go together."""
    shown = [[value for point in points for value in point[axis]] for axis in (0, 1)]
    near = [SAME * (max(values) - min(values)) for values in shown]
    groups: list[list[int]] = []
    for place, point in enumerate(points):
        own = (
            group
            for group in groups
            if all(abs(point[axis][0] - points[group[0]][axis][0]) <= near[axis] for axis in (0, 1))
        )
        group = next(own, None)
        groups.append([place]) if group is None else group.append(place)
    return groups


def _group_label(group: Sequence[tuple[str, Point]]) -> str:
    """The names of points that are drawn as one, a line each."""
    (name, first), *others = group
    signs = ("=" if all(math.isclose(*two) for two in _means(first, one)) else "≈" for _, one in others)
    return "\n".join([name, *(f"{sign} {other}" for sign, (other, _) in zip(signs, others, strict=True))])


def _means(one: Point, other: Point) -> list[tuple[float, float]]:
    return [(a[0], b[0]) for a, b in zip(one, other, strict=True)]


def draw_reliability(bins: Sequence[Mapping[str, float]], out_png: Path) -> Path:
    """Draw how often a router's choice was the best one against how sure it was.

    Args:
        bins: records with `confidence`, `best` and `n`; the more choices, the larger the point.
        out_png: file to write.

    Returns:
        The file.

    Raises:
        InputError: there is no bin.
    """
    need(bins, "bins")
    figure, (axes,) = new_figure(1)
    total = sum(one["n"] for one in bins)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=0, label="as often as sure")
    axes.scatter(
        [one["confidence"] for one in bins],
        [one["best"] for one in bins],
        s=[20 + 200 * one["n"] / total for one in bins],
        color=colour(0),
        label="choices for held-out questions",
        clip_on=False,
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    percent_axis(axes)
    finish(axes, "how sure the learned router was", "share of choices that were the best")
    return save(figure, out_png)


def _column_means(rows: Sequence[Sequence[float]]) -> list[float]:
    columns = [[row[place] for row in rows if place < len(row)] for place in range(max(map(len, rows)))]
    return [sum(column) / len(column) for column in columns]


def _spread(value: Any) -> tuple[float, float, float]:
    return float(value["mean"]), float(value["low"]), float(value["high"])


def _bar(spread: tuple[float, float, float]) -> list[list[float]]:
    mean, low, high = spread
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other surpasses in both, by rising tokens."""
    best: list[tuple[float, float]] = []
    for tokens, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((tokens, score))
    return best
