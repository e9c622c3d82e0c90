"""Heat maps: squares between pairs of models, and rows of layers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from petkit.errors import InputError
from petkit.report.figures import need, save

# Rows beyond which not every one is named, and cells beyond which none holds its number.
NAMED_ROWS, NUMBERED_CELLS = 40, 240
# An odd number, so that the centre has a colour of its own.
STEPS = 33
LONGEST_NAME = 18
INCH_OF_CELL, INCH_OF_ROW = 0.72, 0.24
MISSING = "#E4E4E4"


@dataclass(frozen=True)
class Scale:
    """How values become colours.

    Args:
        label: what the values are, with their unit.
        centre: of two-sided colours, such as 0 for cosines; None for one-sided ones from 0.
        least: half of a two-sided scale, or the top of a one-sided one, is at least this: noise of some
            thousandths must not look like a finding.
        form: a format specification of the numbers in cells.
        flipped: values above the centre have the colours that those below it have elsewhere.
    """

    label: str
    centre: float | None = None
    least: float = 0.05
    form: str = ".2f"
    flipped: bool = False

    @property
    def colours(self) -> Colormap:
        """Steps of colour: with few of them an indexed PNG keeps every one."""
        name = "cividis" if self.centre is None else "PuOr_r" if self.flipped else "PuOr"
        return colormaps[name].resampled(STEPS).with_extremes(bad=MISSING)

    def norm(self, values: Sequence[float]) -> Normalize:
        """The scale of values."""
        if self.centre is None:
            return Normalize(0.0, max([self.least, *values]))
        reach = max([self.least, *(abs(value - self.centre) for value in values)])
        return TwoSlopeNorm(self.centre, self.centre - reach, self.centre + reach)


def draw_heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    scale: Scale,
    out_png: Path,
    *,
    row_label: str = "",
) -> Path:
    """Draw a table of numbers as coloured cells, with the numbers in them while there is room.

    Args:
        rows: names, from top to bottom.
        columns: names, from left to right.
        values: of each row, one for each column; None is drawn grey.
        scale: of the colours.
        out_png: file to write.
        row_label: what the rows are.

    Returns:
        The file.

    Raises:
        InputError: nothing to draw, or values that are no table of these rows and columns.
    """
    need(rows, "rows")
    need(columns, "columns")
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise InputError(f"values must be {len(rows)} rows of {len(columns)} numbers")
    names = [_wrapped(name) for name in columns]
    figure, axes = _figure(rows, names)
    table = np.array([[math.nan if one is None else one for one in row] for row in values], float)
    norm = scale.norm(table[np.isfinite(table)].tolist())
    shown = axes.imshow(table, norm=norm, cmap=scale.colours, aspect="auto", interpolation="nearest")
    _name(axes, rows, names, row_label)
    if table.size <= NUMBERED_CELLS:
        _number(axes, table, norm, scale)
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.03, aspect=30 if len(rows) > 8 else 15)
    bar.set_label(scale.label, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return save(figure, out_png)


def _figure(rows: Sequence[str], columns: Sequence[str]) -> tuple[Figure, Axes]:
    widest = max(len(line) for name in columns for line in name.split("\n"))
    longest = max(map(len, rows))
    cell = INCH_OF_CELL if len(rows) <= 12 and len(rows) * len(columns) <= NUMBERED_CELLS else 0.5
    row = 0.45 if len(rows) <= 12 else min(INCH_OF_ROW, 12.0 / len(rows))
    width = 1.6 + 0.07 * longest + cell * len(columns)
    height = 0.5 + row * len(rows) + (0.35 if _is_flat(columns) else 0.075 * widest + 0.2)
    figure = Figure(figsize=(max(width, 4.2), max(height, 2.6)), dpi=110, layout="constrained")
    return figure, figure.add_subplot(1, 1, 1)


def _is_flat(columns: Sequence[str]) -> bool:
    """Whether names of columns have room side by side."""
    return max(len(line) for name in columns for line in name.split("\n")) <= 8


def _name(axes: Axes, rows: Sequence[str], columns: Sequence[str], row_label: str) -> None:
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=0 if _is_flat(columns) else 90)
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    step, last = math.ceil(len(rows) / NAMED_ROWS), len(rows) - 1
    # The last row is named always: it is often of another kind.
    places = [*(place for place in range(0, last, step) if last - place >= step), last]
    axes.set_yticks(places, [rows[place] for place in places], fontsize=8)
    axes.set_ylabel(row_label, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for across in range(1, len(columns)):
        axes.axvline(across - 0.5, color="white", linewidth=1)
    if len(rows) <= NAMED_ROWS:
        for down in range(1, len(rows)):
            axes.axhline(down - 0.5, color="white", linewidth=1)


def _number(axes: Axes, table: np.ndarray, norm: Normalize, scale: Scale) -> None:
    for (down, across), value in np.ndenumerate(table):
        if not np.isfinite(value):
            continue
        red, green, blue, _ = scale.colours(norm(value))
        # Luminance as the eye has it, so that numbers can be read on every colour.
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = format(value, scale.form)
        # Neither minus zero nor a lost sign.
        text = text.removeprefix("-") if float(text.rstrip("%")) == 0 else text
        axes.text(
            across, down, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black"
        )


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.shorten(line, LONGEST_NAME, placeholder="…") for line in name.split("\n"))
