"""TSV: the leading singular triplets of each task, made orthogonal to each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from petkit.merging.combining import Chosen, TensorByTensor, by_weights_with_base
from petkit.merging.parameters import LAMBDA, Values
from petkit.merging.slices import Piece, Slices


class Tsv(TensorByTensor):
    """theta_0 + lambda U S V of the leading 1/n of each task's triplets; of others the mean difference."""

    name = "tsv"
    title = "task singular vectors"
    paper = "Gargiulo et al. 2025, arXiv:2412.00081"
    parameters = (LAMBDA,)
    needs_base = True
    models = (1, 64)

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Singular vectors of matrices, the mean difference of the others."""
        count, factor = len(slices.models), float(values.whole["lambda"])
        if len(slices.shape) != 2 or min(slices.shape) < count:
            return by_weights_with_base([factor / count] * count, 1 - factor, dtype)
        return Chosen(lambda piece: _merged(piece, slices.shape, factor).to(dtype), in_pieces=False)


def _merged(piece: Piece, shape: tuple[int, ...], factor: float) -> Tensor:
    assert piece.base is not None
    base = piece.base.float()
    rank = min(shape) // len(piece.models)
    parts = [_leading((row.float() - base).view(shape), rank) for row in piece.models]
    left, values, right = (torch.cat(own, dim=-1) for own in zip(*parts, strict=True))
    merged = (_orthogonal(left) * values) @ _orthogonal(right).T
    return base + factor * merged.flatten()


def _leading(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank].T


def _orthogonal(columns: Tensor) -> Tensor:
    """The nearest columns that are orthogonal: U V of their singular value decomposition."""
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    found: Tensor = left @ right
    return found
