"""SLERP: along the great circle between two models."""

from __future__ import annotations

import math
from typing import Any

import torch

from petkit.merging.combining import Chosen, TensorByTensor, by_weights, by_weights_with_base
from petkit.merging.parameters import Parameter, Values
from petkit.merging.slices import Slices

# Directions closer than this are interpolated along the line: the circle's formula divides by their angle.
PARALLEL = 0.9995


class Slerp(TensorByTensor):
    """(sin((1 - t) a) theta_0 + sin(t a) theta_1) / sin(a), a the angle between both; t = 0 is the base."""

    name = "slerp"
    title = "spherical interpolation of two models"
    paper = "Shoemake 1985"
    parameters = (Parameter("t", None, 0.0, 1.0),)
    needs_base = True
    models = (1, 1)

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Weights by the angle."""
        t = float(values.whole["t"])
        first, second = _weights(t, _cosine(slices))
        if first == 0:
            return by_weights([second], dtype)
        return by_weights_with_base([second], first, dtype)


def _weights(t: float, cosine: float) -> tuple[float, float]:
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _cosine(slices: Slices) -> float:
    both, own, other = 0.0, 0.0, 0.0
    for piece in slices.pieces(slices.small):
        assert piece.base is not None
        base, model = piece.base.double(), piece.models[0].double()
        both += float(base @ model)
        own += float(base @ base)
        other += float(model @ model)
    norm = math.sqrt(own) * math.sqrt(other)
    # A tensor of zeros has no direction, and is interpolated along the line.
    return max(-1.0, min(1.0, both / norm)) if norm > 0 else 1.0
