"""`merge_linear`: the weighted sum of slices of models, in float32, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops import _library, _merge


def merge_linear(models: Tensor, weights: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Sum slices of models by weight.

    Args:
        models: (n, count) float32, bfloat16 or float16, a row for each model.
        weights: float64 (n,).
        dtype: of the result, one of the same three; None is that of the models.

    Returns:
        (count,). Weights are rounded to float32, and so is each product and each sum, in the order of the
        rows; a weight of 0 hides no nan.

    Raises:
        InputError: other shapes or dtypes.

    Source:
        Wortsman et al. 2022, model soups.
    """
    _merge.check_models(models)
    _merge.check_vector("weights", weights, len(models))
    found: Tensor = torch.ops.petkit.merge_linear(models, weights, _merge.result_dtype(dtype, models))
    return found


def _default(models: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    # Not from zero: 0 + -0 is +0, and one model of weight 1 must come back as it is.
    first, *others = weights.float().tolist()
    total: Tensor = models[0].float() * first
    for row, weight in zip(models[1:], others, strict=True):
        total += row.float() * weight
    return total.to(dtype)


def _fake(models: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    return models.new_empty((models.shape[1],), dtype=dtype)


_library.define("merge_linear(Tensor models, Tensor weights, ScalarType dtype) -> Tensor", _default, _fake)
