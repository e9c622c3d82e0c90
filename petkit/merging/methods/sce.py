"""SCE: select by variance, weigh by squares, erase what the majority's sign does not share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from petkit.merging.combining import Chosen, TensorByTensor
from petkit.merging.parameters import Parameter, Values
from petkit.merging.slices import Piece, Slices


class Sce(TensorByTensor):
    """theta_0 + sum_i w_i m_i d_i / sum_i w_i m_i.

    w_i is the share of mean(d_i^2); m_i is 1 where d_i has the sign of sum_j d_j.

    With `select_topk` below 1 only that share of places is merged, those at which the differences vary most
    between the models.
    """

    name = "sce"
    title = "select, calculate, erase"
    paper = "Wan et al. 2025, FuseChat, arXiv:2408.07990"
    parameters = (Parameter("select_topk", 1.0, 0.0, 1.0),)
    needs_base = True
    models = (1, 64)

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Weights of the tensor, then signs at each place."""
        share = float(values.whole["select_topk"])
        if share < 1:
            return Chosen(lambda piece: _selected(piece, share).to(dtype), in_pieces=False)
        squares = sum(_deltas(piece).double().square().sum(1) for piece in slices.pieces(slices.small))
        weights = _shares(torch.as_tensor(squares))
        return Chosen(lambda piece: _merged(piece, _deltas(piece), weights).to(dtype), size=slices.small)


def _deltas(piece: Piece) -> Tensor:
    assert piece.base is not None
    return piece.models.float() - piece.base.float()


def _shares(squares: Tensor) -> Tensor:
    total = squares.sum()
    return torch.where(total > 0, squares / total, torch.ones_like(squares) / len(squares)).float()


def _selected(piece: Piece, share: float) -> Tensor:
    deltas = _deltas(piece)
    variance = deltas.var(0, correction=0)
    kept = int(share * variance.numel())
    chosen = torch.zeros_like(variance, dtype=torch.bool)
    chosen[variance.topk(kept).indices] = True
    deltas = deltas * chosen
    return _merged(piece, deltas, _shares(deltas.double().square().sum(1)))


def _merged(piece: Piece, deltas: Tensor, weights: Tensor) -> Tensor:
    assert piece.base is not None
    elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    counted = weights[:, None] * (deltas.sign() == elected)
    divisor = counted.sum(0)
    return piece.base.float() + (counted * deltas).sum(0) / torch.where(divisor == 0, 1.0, divisor)
