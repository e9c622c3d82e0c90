"""Breadcrumbs: leave out the smallest and the largest differences."""

from __future__ import annotations

import math
from typing import Any

import torch

from petkit.merging.combining import Chosen, Deltas, TensorByTensor
from petkit.merging.parameters import DENSITY, LAMBDA, WEIGHT, Parameter, Values
from petkit.merging.selection import kth_magnitudes
from petkit.merging.slices import Slices
from petkit.ops.merge_deltas import Consensus

_GAMMA = Parameter("gamma", 0.01, 0.0, 1.0, per_model=True)


class Breadcrumbs(TensorByTensor):
    """Of each tensor's differences the `gamma` largest go, and the `density` largest of the rest stay."""

    name = "breadcrumbs"
    title = "mask the outliers at both ends, then task arithmetic"
    paper = "Davari and Belilovsky 2024, arXiv:2312.06795"
    parameters: tuple[Parameter, ...] = (
        WEIGHT,
        DENSITY,
        _GAMMA,
        LAMBDA,
        Parameter("normalize", False, is_truth=True),
    )
    needs_base = True
    models = (1, 64)
    consensus: Consensus = "none"

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Keep the differences between two thresholds."""
        low, high = _band(slices, values.of("density"), values.of("gamma"))
        whole = values.whole
        return Deltas(
            values,
            low=low,
            high=high,
            consensus=self.consensus,
            normalize=whole["normalize"],
            factor=whole["lambda"],
        ).chosen(slices, dtype)


class BreadcrumbsTies(Breadcrumbs):
    """Breadcrumbs with signs elected as in TIES."""

    name = "breadcrumbs_ties"
    title = "mask the outliers at both ends, then elect signs"
    consensus: Consensus = "sum"


def _band(slices: Slices, densities: list[float], gammas: list[float]) -> tuple[list[float], list[float]]:
    """The smallest and the largest magnitude that stay, of each model."""
    count = slices.count
    tops, bottoms = [], []
    for density, gamma in zip(densities, gammas, strict=True):
        kept = math.floor(density * count)
        # Where both do not fit, as many stay as `density` says.
        top = max(kept, count - math.floor(gamma * count))
        tops.append(top)
        bottoms.append(top - kept)
    ranks = torch.tensor([max(1, top) for top in tops])
    high = kth_magnitudes([slices], ranks).tolist()
    low = kth_magnitudes([slices], torch.tensor([min(count, one + 1) for one in bottoms])).tolist()
    for i, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        if top == bottom:
            low[i] = math.inf
    return low, high
