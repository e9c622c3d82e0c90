"""Inputs of the beam CRF ops and how to read a row of them for the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Batch, time, vocabulary, rank, beam: whole vocabularies, around vector widths, and beyond a block of 4,096.
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 4, 3, 2, 3),
    (2, 5, 20, 3, 1),
    (4, 7, 50, 5, 16),
    (3, 6, 97, 17, 33),
    (2, 3, 40, 4, 400),
    (2, 4, 9001, 32, 64),
]


class Inputs(NamedTuple):
    emissions: Tensor
    mask: Tensor
    left: Tensor
    right: Tensor
    beam: int
    dynamic: Tensor | None
    targets: Tensor


def inputs(batch, time, vocab, rank, beam, dtype=torch.float32, seed=0, dynamic=True) -> Inputs:
    """Random scores, masks with holes but in the first row, and targets that mostly are no candidates."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mask = torch.rand((batch, time), generator=generator) < 0.7
    mask[:, :1] = True
    mask[:1] = True
    matrices = (normal(batch, max(time - 1, 0), rank, rank) / rank**0.5).to(wide) if dynamic else None
    return Inputs(
        (normal(batch, time, vocab) * 2).to(dtype),
        mask,
        normal(vocab, rank).to(wide) / rank**0.25,
        normal(vocab, rank).to(wide) / rank**0.25,
        beam,
        matrices,
        torch.randint(vocab, (batch, time), generator=generator),
    )


def rows(arguments: Inputs) -> Any:
    """Emissions and targets of the set positions, factors and matrices of each row."""
    left, right = (part.detach().double().numpy() for part in (arguments.left, arguments.right))
    for b, valid in enumerate(arguments.mask):
        emissions = arguments.emissions[b][valid].detach().double().numpy()
        matrices = None
        if arguments.dynamic is not None:
            into = valid.nonzero()[1:, 0] - 1
            matrices = arguments.dynamic[b, into].detach().double().numpy()
        yield emissions, arguments.targets[b][valid].numpy(), (left, right, matrices)
