"""The quantisation methods by name, with where they come from. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to turn a 32-bit matrix into codes, shift and scale."""

    summary: str
    paper: str
    uses_calibration: bool


METHODS = {
    "nearest": Method(
        "nearest level; shift and scale are the weights' mean and standard deviation",
        "https://arxiv.org/abs/2307.16867",
        uses_calibration=False,
    ),
    "least_squares": Method(
        "nearest level, then shift and scale (and codes, in rounds) refitted by least squares, on "
        "calibration inputs when there are any",
        "https://arxiv.org/abs/2307.16867",
        uses_calibration=True,
    ),
}
