"""What all figures share: no pyplot, no global state, colours that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from petkit.artifacts.files import write_error
from petkit.errors import InputError

# Okabe and Ito's qualitative palette, its orange more yellow, and behind it colours that lie far from these
# and from each other, for as many series as a comparison of policies has; markers differ too, so that a grey
# print stays readable.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E6B800", "#56B4E9", "#000000",
    "#332288", "#7CB518", "#882255", "#8A8A8A", "#5A5A00", "#D000C0", "#7A3B10",
)  # fmt: skip
# Of a picture, as an indexed PNG holds them.
COLOURS = 256
# Widest picture that stays readable where it is scaled down to a narrow screen; two go beside each other.
FIT_PIXELS = 451
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8")


def new_figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(6.4, 4.0) if panels == 1 else (3.5 * panels, 3.2), dpi=110, layout="constrained")
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def stacked_figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels one below the other, as wide as a narrow screen shows whole."""
    figure = Figure(figsize=(FIT_PIXELS / 110, 2.5 * panels), dpi=110, layout="constrained")
    return figure, [figure.add_subplot(panels, 1, number + 1) for number in range(panels)]


def finish(axes: Axes, x_label: str, y_label: str, *, legend: bool = True, columns: int = 2) -> None:
    """Label the axes, and put the legend above them, where no data can lie under it."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns)


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
    axes.yaxis.set_major_formatter(_Fractions(xmax=1.0))


def step_axis(axes: Axes) -> None:
    """Number optimiser steps in whole numbers, a single one too."""
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim(round((low + high) / 2) - 1, round((low + high) / 2) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


class _Fractions(PercentFormatter):
    """No labels in the margin, where there are no fractions."""

    def __call__(self, value: float, position: int | None = None) -> str:
        """The label of a tick."""
        return str(super().__call__(value, position)) if -1e-9 < value < 1 + 1e-9 else ""


def save(figure: Figure, out_png: Path) -> Path:
    """Write a figure as a small PNG: 256 colours, no tags, so that the same numbers give the same file.

    Raises:
        PetkitError: it cannot be written, as on a full disk.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # An indexed PNG is a third of the bytes.
    image = _indexed(np.asarray(canvas.buffer_rgba())[..., :3])
    try:
        out_png.parent.mkdir(parents=True, exist_ok=True)
        image.save(out_png, format="PNG", optimize=True)
    except OSError as error:
        raise write_error(out_png, error) from error
    return out_png


def _indexed(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Image.Image:
    """An image of the series' own colours, which small markers lose to shades of text, and the commonest."""
    found, places, counts = np.unique(_codes(pixels), return_inverse=True, return_counts=True)
    own = _codes(np.array([list(bytes.fromhex(one[1:])) for one in PALETTE], dtype=np.uint8))
    # Equal counts in the order of the colours: the same figure gives the same file.
    common = found[np.argsort(-counts, kind="stable")]
    chosen = _colours(np.concatenate([own, common[~np.isin(common, own)]])[:COLOURS])
    shades = _colours(found)
    distances = (chosen**2).sum(axis=1) - 2 * shades @ chosen.T
    image = Image.fromarray(distances.argmin(axis=1).astype(np.uint8)[places].reshape(pixels.shape[:2]), "P")
    image.putpalette(chosen.astype(np.uint8).tobytes())
    return image


def _codes(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Colours as one number each."""
    red, green, blue = pixels.reshape(-1, 3).astype(np.int64).T
    return red << 16 | green << 8 | blue


def _colours(codes: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.float32)


def need(items: Sequence[Any] | Mapping[str, Any], name: str) -> None:
    """Refuse to draw nothing."""
    if not items:
        raise InputError(f"{name} must hold at least one entry to draw, got none")
