"""The weighted mean of models."""

from __future__ import annotations

from typing import Any

import torch

from petkit.merging.combining import Chosen, TensorByTensor, by_weights
from petkit.merging.parameters import WEIGHT, Parameter, Values, normalized
from petkit.merging.slices import Slices


class Linear(TensorByTensor):
    """sum_i w_i theta_i, the weights divided by their sum unless `normalize` is false."""

    name = "linear"
    title = "weighted mean"
    paper = "Wortsman et al. 2022, model soups, arXiv:2203.05482"
    parameters = (WEIGHT, Parameter("normalize", True, is_truth=True))
    needs_base = False
    models = (1, 64)

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Sum by weight."""
        weights = values.of("weight")
        if values.whole["normalize"]:
            weights = normalized(weights, slices.name)
        return by_weights(weights, dtype)
