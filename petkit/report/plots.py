"""Accuracies with their intervals, sizes and training curves as small PNG files."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from petkit.errors import InputError
from petkit.report.figures import (
    colour,
    finish,
    marker,
    need,
    new_figure,
    percent_axis,
    save,
    stacked_figure,
    step_axis,
)
from petkit.report.statistics import Interval

ACCURACY = "test accuracy (95 % interval)"
# What names of a metrics.jsonl hold, and what the panel of each says.
FAMILIES = (("loss", "loss (nats)"), ("accuracy", "accuracy"), ("learning_rate", "learning rate"))


@dataclass(frozen=True)
class SizePoint:
    """One system on the accuracy against size figure."""

    label: str
    adapter_bytes: int
    accuracy: Interval


def accuracy_bytes(rows: Sequence[SizePoint], out_png: Path) -> Path:
    """Draw accuracy with its interval against the adapter's bytes, on a logarithmic axis.

    Args:
        rows: one point per system; accuracy as a fraction in [0, 1], bytes at least 1.
        out_png: file to write.

    Returns:
        The file.

    Raises:
        InputError: no row, or bytes below 1.

    Source:
        The size-accuracy figure of Jie, Wang and Deng (2023), with intervals added.
    """
    need(rows, "rows")
    if min(row.adapter_bytes for row in rows) < 1:
        raise InputError("adapter_bytes must be at least 1 to lie on a logarithmic axis, got 0")
    figure, (axes,) = new_figure(1)
    for index, row in enumerate(rows):
        _error_bar(axes, [float(row.adapter_bytes)], [row.accuracy], index, row.label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = min(row.adapter_bytes for row in rows), max(row.adapter_bytes for row in rows)
    axes.set_xlim(low / 2, high * 2)
    percent_axis(axes)
    finish(axes, "trained parameters on disk (bytes, log scale)", ACCURACY)
    return save(figure, out_png)


def noise_curve(
    series: Mapping[str, Sequence[Interval]], relative_noise: Sequence[float], out_png: Path
) -> Path:
    """Draw accuracy under Gaussian weight noise: the flat-minimum curve.

    Args:
        series: label -> one accuracy (a fraction) per noise level.
        relative_noise: the levels r; a weight matrix gets noise of standard deviation r times its own.
        out_png: file to write.

    Returns:
        The file.

    Raises:
        InputError: no series, or a series of another length than the levels.

    Source:
        Jie, Wang and Deng (2023), robustness to weight noise.
    """
    return lines(series, relative_noise, out_png, x_label="weight noise (standard deviations of each matrix)")


def lines(
    series: Mapping[str, Sequence[Interval]], positions: Sequence[float], out_png: Path, *, x_label: str
) -> Path:
    """Draw accuracies with intervals as connected lines.

    Args:
        series: label -> one accuracy (a fraction) per position.
        positions: shared x values.
        out_png: file to write.
        x_label: what x is, with its unit.

    Returns:
        The file.

    Raises:
        InputError: no series, or a series of another length than the positions.
    """
    need(series, "series")
    figure, (axes,) = new_figure(1)
    for index, (label, values) in enumerate(series.items()):
        if len(values) != len(positions):
            raise InputError(
                f"series {label!r} must have {len(positions)} values, one a position, got {len(values)}"
            )
        _error_bar(axes, list(positions), values, index, label, line="-")
    percent_axis(axes)
    finish(axes, x_label, ACCURACY)
    return save(figure, out_png)


def named_intervals(rows: Mapping[str, Interval], out_png: Path) -> Path:
    """Draw one accuracy with its interval per name, side by side in the order given.

    Args:
        rows: name on the x axis -> accuracy (a fraction).
        out_png: file to write.

    Returns:
        The file.

    Raises:
        InputError: no row.
    """
    need(rows, "rows")
    figure, (axes,) = new_figure(1)
    for place, (label, value) in enumerate(rows.items()):
        _error_bar(axes, [place], [value], place, label)
    # Names share the width: long ones are broken, so that neighbours do not run into each other.
    width = max(8, 70 // len(rows))
    _categories(axes, ["\n".join(textwrap.wrap(name, width)) for name in rows])
    finish(axes, "", ACCURACY, legend=False)
    return save(figure, out_png)


def grouped_intervals(
    groups: Mapping[str, Mapping[str, Interval]], out_png: Path, *, x_label: str = "", reference: str = ""
) -> Path:
    """Draw accuracies with intervals in named groups, such as one line each for PTQ and QAT over bit widths.

    Args:
        groups: group on the x axis -> series label -> accuracy (a fraction). A series is drawn as a line, a
            little beside the others.
        out_png: file to write.
        x_label: what the groups are.
        reference: label of the series whose first accuracy is also drawn across all groups.

    Returns:
        The file.

    Raises:
        InputError: no group.
    """
    need(groups, "groups")
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    # A reference stands in a group of its own, in the middle of it; the others around the middle of theirs.
    labels.sort(key=lambda label: label == reference)
    last = len(labels) - 1 - (reference in labels)
    figure, (axes,) = new_figure(1)
    for index, label in enumerate(labels):
        offset = 0.0 if label == reference else (index - last / 2) * min(0.12, 0.5 / len(labels))
        present = [
            (place + offset, group[label]) for place, group in enumerate(groups.values()) if label in group
        ]
        if label == reference:
            axes.axhline(present[0][1].estimate, color=colour(index), linewidth=1.0, linestyle="--")
        _error_bar(axes, [x for x, _ in present], [value for _, value in present], index, label, line="-")
    _categories(axes, list(groups))
    finish(axes, x_label, ACCURACY)
    return save(figure, out_png)


def training_curves(metrics_path: Path, out_png: Path) -> Path:
    """Draw the losses, accuracies and learning rate that a run logged, one panel each, one below the other.

    Args:
        metrics_path: metrics.jsonl: one JSON object a line with `step`, and numbers under names that hold
            `loss`, `accuracy` or `learning_rate`.
        out_png: file to write.

    Returns:
        The file.

    Raises:
        InputError: a line that is not a JSON object, or no number to draw.
    """
    curves = number_curves(read_metrics(metrics_path))
    panels = [
        (label, {name: curve for name, curve in curves.items() if word in name}) for word, label in FAMILIES
    ]
    panels = [(label, found) for label, found in panels if found]
    if not panels:
        raise InputError(f"{metrics_path} must log loss, accuracy or learning_rate, got {sorted(curves)}")
    figure, all_axes = stacked_figure(len(panels))
    for axes, (label, found) in zip(all_axes, panels, strict=True):
        for index, (name, points) in enumerate(found.items()):
            draw_curve(axes, _series(name) or name, points, index)
        if label == "accuracy":
            percent_axis(axes)
        step_axis(axes)
        # A panel of one curve says on its axis whose it is, since it has no legend.
        whose = f"{_series(next(iter(found)))} {label}".strip() if len(found) == 1 else label
        finish(axes, "optimiser step", whose, legend=len(found) > 1)
    return save(figure, out_png)


def training_caption(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say what `training_curves` shows of rows of a metrics.jsonl."""
    names = {name for row in rows for name in row}
    shown = [word.replace("_", " ") for word, _ in FAMILIES if any(word in name for name in names)]
    listed = shown[-1] if len(shown) < 2 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{listed.capitalize()} at every optimiser step."


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl.

    Args:
        path: file of one JSON object a line.

    Returns:
        The objects, in order. A last line without a newline that does not parse is left out: a run that was
        killed while writing leaves one.

    Raises:
        InputError: the file is missing, or another line is not a JSON object.
    """
    if not path.is_file():
        raise InputError(f"{path} must be a metrics.jsonl of a run, got no such file")
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = []
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in numbered:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == numbered[-1][0] and not text.endswith("\n"):
                break
            raise InputError(
                f"{path}:{number} must be a JSON object, got {error.msg} at {error.pos}"
            ) from error
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number} must be a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def number_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Points of step and value for every finite number that rows of a metrics.jsonl hold, by its name."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for position, row in enumerate(rows):
        step = row.get("step", position)
        for name, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                curves.setdefault(name, []).append((float(step), float(value)))
    return curves


def _series(name: str) -> str:
    """Whose numbers a logged name holds; nothing for the learning rate, which is the run's own."""
    if "learning_rate" in name:
        return ""
    return "validation" if name.startswith(("eval", "validation")) else "training"


def draw_curve(axes: Axes, name: str, points: Sequence[tuple[float, float]], index: int) -> None:
    """Draw one curve, its points too where they are few."""
    steps, values = zip(*points, strict=True)
    shape = marker(index) if len(points) <= 30 else ""
    axes.plot(steps, values, color=colour(index), marker=shape, markersize=3.5, linewidth=1.4, label=name)


def _error_bar(
    axes: Axes, xs: Sequence[float], values: Sequence[Interval], index: int, label: str, line: str = ""
) -> None:
    below = [_finite(value.estimate - value.low) for value in values]
    above = [_finite(value.high - value.estimate) for value in values]
    axes.errorbar(
        xs,
        [value.estimate for value in values],
        yerr=[below, above],
        fmt=marker(index) + line,
        color=colour(index),
        capsize=3,
        markersize=6,
        linewidth=1.4,
        label=label,
    )


def _finite(value: float) -> float:
    """A single run has NaN ends: it is drawn without a bar."""
    return max(0.0, value) if math.isfinite(value) else 0.0


def _categories(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    percent_axis(axes)


def _short_bytes(value: float) -> str:
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:g} {unit}"
