"""Passthrough: tensors of one model as they are, for layers that are stacked anew."""

from __future__ import annotations

from typing import Any

import torch

from petkit.merging.combining import Chosen, TensorByTensor, by_weights
from petkit.merging.parameters import Parameter, Values
from petkit.merging.slices import Slices


class Passthrough(TensorByTensor):
    """The tensor itself, times `scale`."""

    name = "passthrough"
    title = "layers as they are, stacked anew"
    paper = "none"
    parameters = (Parameter("scale", 1.0, per_model=True),)
    needs_base = False
    models = (1, 1)

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Copy."""
        return by_weights(values.of("scale"), dtype)
