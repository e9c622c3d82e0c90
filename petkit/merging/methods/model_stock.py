"""Model stock: the mean of fine-tuned models, drawn towards the base by the angle between them."""

from __future__ import annotations

from typing import Any

import torch

from petkit.merging.combining import Chosen, TensorByTensor, by_weights_with_base
from petkit.merging.parameters import Values
from petkit.merging.slices import Slices


class ModelStock(TensorByTensor):
    """t mean_i theta_i + (1 - t) theta_0, t = n c / (1 + (n - 1) c), c the mean cosine of differences."""

    name = "model_stock"
    title = "mean and base, by the angle of the differences"
    paper = "Jang, Yun and Han 2024, arXiv:2403.19522"
    parameters = ()
    needs_base = True
    models = (2, 64)

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Weights by the mean cosine of the tensor."""
        count = len(slices.models)
        cosine = _mean_cosine(slices)
        if 1 + (count - 1) * cosine < 1e-3:
            # Differences that cancel: their mean is the base.
            return by_weights_with_base([0.0] * count, 1.0, dtype)
        t = count * cosine / (1 + (count - 1) * cosine)
        return by_weights_with_base([t / count] * count, 1 - t, dtype)


def _mean_cosine(slices: Slices) -> float:
    count = len(slices.models)
    products = torch.zeros(count, count, dtype=torch.float64)
    for piece in slices.pieces(slices.small):
        assert piece.base is not None
        deltas = piece.models.double() - piece.base.double()
        products += deltas @ deltas.T
    norms = products.diagonal().sqrt()
    cosines = products / (norms[:, None] * norms).clamp_min(1e-300)
    rows, columns = torch.triu_indices(count, count, 1)
    return float(cosines[rows, columns].mean())
