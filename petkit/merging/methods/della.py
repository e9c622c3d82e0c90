"""DELLA: drop differences at random, small ones of their row more often than large ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from petkit.errors import ConfigError
from petkit.merging.combining import Chosen, TensorByTensor
from petkit.merging.parameters import DENSITY, LAMBDA, WEIGHT, Parameter, Values, normalized
from petkit.merging.slices import Piece, Slices, stream_key
from petkit.ops import _merge
from petkit.ops.merge_deltas import Terms, merge_deltas

_EPSILON = Parameter("epsilon", 0.15, 0.0, 0.5, per_model=True)


class Della(TensorByTensor):
    """Kept with a probability from `density` - `epsilon` to `density` + `epsilon` by rank; then as TIES."""

    name = "della"
    title = "drop by magnitude and rescale, then elect signs"
    paper = "Deep, Bhardwaj and Poria 2024, arXiv:2406.11617"
    parameters: tuple[Parameter, ...] = (
        WEIGHT,
        DENSITY,
        _EPSILON,
        LAMBDA,
        Parameter("normalize", True, is_truth=True),
    )
    needs_base = True
    models = (1, 64)
    elects = True

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Drop by ranks within rows."""
        for density, epsilon in zip(values.of("density"), values.of("epsilon"), strict=True):
            if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
                raise ConfigError(
                    f"density - epsilon and density + epsilon must lie between 0 and 1, got {density:g} "
                    f"and {epsilon:g}"
                )
        if values.whole["normalize"] and not self.elects:
            # Refuses weights that add up to nothing.
            normalized(values.of("weight"), slices.name)
        size = slices.size_of_rows(_width(slices))
        return Chosen(lambda piece: self._merged(piece, slices, values, dtype), size=size)

    def _merged(self, piece: Piece, slices: Slices, values: Values, dtype: torch.dtype) -> Tensor:
        assert piece.base is not None
        base = piece.base.float()
        kept = [
            _thinned(row.float() - base, piece.start, slices, values, i) for i, row in enumerate(piece.models)
        ]
        count = len(kept)
        terms = Terms(
            torch.tensor(values.of("weight"), dtype=torch.float64),
            torch.zeros(count, dtype=torch.float64),
            torch.full((count,), torch.inf, dtype=torch.float64),
            torch.ones(count, dtype=torch.float64),
            torch.zeros(count, dtype=torch.int64),
        )
        whole = values.whole
        found = merge_deltas(
            torch.zeros_like(base),
            torch.stack(kept),
            terms,
            consensus="sum" if self.elects else "none",
            normalize=whole["normalize"],
            factor=whole["lambda"],
        )
        return (base + found).to(dtype)


class DellaLinear(Della):
    """DELLA's dropping, then task arithmetic."""

    name = "della_linear"
    title = "drop by magnitude and rescale, then task arithmetic"
    parameters = (WEIGHT, DENSITY, _EPSILON, LAMBDA, Parameter("normalize", False, is_truth=True))
    elects = False


def _width(slices: Slices) -> int:
    return max(1, slices.shape[-1] if len(slices.shape) > 1 else slices.count)


def _thinned(delta: Tensor, start: int, slices: Slices, values: Values, model: int) -> Tensor:
    """Differences that are kept, each divided by its probability."""
    density, epsilon = values.of("density")[model], values.of("epsilon")[model]
    if density >= 1:
        return delta
    width = _width(slices)
    order = delta.abs().view(-1, width).argsort(dim=1, stable=True)
    places = torch.arange(width, dtype=torch.float32).expand(order.shape)
    ranks = torch.empty(order.shape).scatter_(1, order, places)
    share = density - epsilon + 2 * epsilon * ranks / max(1, width - 1)
    drawn = _merge.uniform(stream_key(values.seed, slices.name, model), start, delta.numel())
    return torch.where(drawn < share.flatten(), delta / share.flatten(), 0.0)
