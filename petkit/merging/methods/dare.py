"""DARE: drop differences at random, rescale the others; added, or merged as TIES does."""

from __future__ import annotations

from typing import Any

import torch

from petkit.merging.combining import Chosen, Deltas, TensorByTensor
from petkit.merging.parameters import LAMBDA, WEIGHT, Parameter, Values
from petkit.merging.slices import Slices
from petkit.ops.merge_deltas import Consensus

# 0 would leave nothing to rescale.
_DENSITY = Parameter("density", 1.0, 1e-6, 1.0, per_model=True)
_PAPER = "Yu et al. 2024, arXiv:2311.03099"


class DareLinear(TensorByTensor):
    """Each difference is kept with probability `density` and divided by it; then task arithmetic."""

    name = "dare_linear"
    title = "drop and rescale, then task arithmetic"
    paper = _PAPER
    parameters: tuple[Parameter, ...] = (
        WEIGHT,
        _DENSITY,
        LAMBDA,
        Parameter("normalize", False, is_truth=True),
    )
    needs_base = True
    models = (1, 64)
    consensus: Consensus = "none"

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Drop by the stream of the tensor and the model."""
        whole = values.whole
        return Deltas(
            values,
            keep=values.of("density"),
            consensus=self.consensus,
            normalize=whole["normalize"],
            factor=whole["lambda"],
        ).chosen(slices, dtype)


class DareTies(DareLinear):
    """Kept with probability `density` and divided by it; then signs are elected as in TIES."""

    name = "dare_ties"
    title = "drop and rescale, then elect signs"
    parameters = (WEIGHT, _DENSITY, LAMBDA, Parameter("normalize", False, is_truth=True))
    consensus: Consensus = "sum"
