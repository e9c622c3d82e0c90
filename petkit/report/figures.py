"""What all figures share: no pyplot, no global state, colours that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from petkit.errors import InputError

# Okabe and Ito's qualitative palette, darkest first, and behind it colours of Tol's, for as many series as a
# comparison of policies has; markers differ too, so that a grey print stays readable.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
    "#332288", "#AA4499", "#999933", "#882255", "#44AA99", "#CC6677", "#DDCC77",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8")


def new_figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(6.4, 4.0) if panels == 1 else (3.5 * panels, 3.2), dpi=110, layout="constrained")
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def finish(axes: Axes, x_label: str, y_label: str, *, legend: bool = True) -> None:
    """Label the axes, and put the legend above them, where no data can lie under it."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)


def colour(index: int) -> str:
    """The colour of the series at this place."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Its marker, shifted by one in every round of colours: none must look like the first."""
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def percent_axis(axes: Axes) -> None:
    """Show fractions as per cent, within 0 and 1."""
    # A t-interval over few seeds may leave [0, 1]; the axis need not.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))


def save(figure: Figure, out_png: Path) -> Path:
    """Write a figure as a small PNG: few colours, no tags, so that the same numbers give the same file."""
    out_png.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # An indexed PNG is a third of the bytes.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(colors=128, dither=Image.Dither.NONE).save(out_png, format="PNG", optimize=True)
    return out_png


def need(items: Sequence[Any] | Mapping[str, Any], name: str) -> None:
    """Refuse to draw nothing."""
    if not items:
        raise InputError(f"{name} must hold at least one entry to draw, got none")
