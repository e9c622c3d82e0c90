"""TIES: trim small differences, elect a sign at each place, average those that agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from petkit.errors import ConfigError
from petkit.merging.combining import Chosen, Deltas
from petkit.merging.parameters import DENSITY, LAMBDA, WEIGHT, Parameter, Values
from petkit.merging.selection import thresholds
from petkit.merging.slices import Slices


class Ties:
    """Differences among the `density` largest of their model, of the sign that their weighted sum elects.

    `scope` tensor trims each tensor by itself, as mergekit does; global all tensors together, as the paper
    and M2RL do.
    """

    name = "ties"
    title = "trim, elect sign, merge"
    paper = "Yadav et al. 2023, arXiv:2306.01708"
    parameters = (
        WEIGHT,
        DENSITY,
        LAMBDA,
        Parameter("normalize", True, is_truth=True),
        Parameter("scope", "tensor", choices=("tensor", "global")),
    )
    needs_base = True
    models = (1, 64)

    def survey(self, tensors: Sequence[tuple[Slices, Values]]) -> Any:
        """Thresholds over all tensors, with a global scope."""
        if not tensors or tensors[0][1].whole["scope"] == "tensor":
            return None
        densities = tensors[0][1].of("density")
        if any(values.of("density") != densities for _, values in tensors):
            raise ConfigError(
                "density must be one number a model with scope global, got others for some tensors"
            )
        return thresholds([one for one, _ in tensors], densities)

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Trim by a threshold, elect, average."""
        low = surveyed
        if low is None:
            low = thresholds([slices], values.of("density"))
        whole = values.whole
        return Deltas(
            values,
            low=low.tolist(),
            consensus="sum",
            normalize=whole["normalize"],
            factor=whole["lambda"],
        ).chosen(slices, dtype)
