"""What the beam CRF benchmarks share: 32 ragged rows of 64 positions over 32,768 entries, and plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BATCH, TIME, VOCAB, BEAM, RANK = 32, 64, 32_768, 64, 32
SHAPE = f"{BATCH}x{TIME}x{VOCAB}, beam {BEAM}, rank {RANK}"
PEER = "plain torch"


class Inputs(NamedTuple):
    """Emissions, masks, factors and targets."""

    emissions: Tensor
    mask: Tensor
    left: Tensor
    right: Tensor
    targets: Tensor


def inputs(dtype: torch.dtype = torch.float32) -> Inputs:
    """Rows of 32 to 64 positions."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(TIME // 2, TIME + 1, (BATCH, 1), generator=generator)
    lengths[0] = TIME
    return Inputs(
        torch.randn(BATCH, TIME, VOCAB, generator=generator).to(dtype),
        torch.arange(TIME) < lengths,
        (torch.randn(VOCAB, RANK, generator=generator) * 0.1).to(dtype),
        (torch.randn(VOCAB, RANK, generator=generator) * 0.1).to(dtype),
        torch.randint(VOCAB, (BATCH, TIME), generator=generator),
    )


class Candidates(NamedTuple):
    """Scores (batch, time, beam), entries, and transitions (batch, time - 1, beam, beam)."""

    scores: Tensor
    entries: Tensor
    transitions: Tensor


def candidates(given: Inputs, forced: Tensor | None = None) -> Candidates:
    """What a model in plain torch would write: top-k, gather, and all the transitions at once."""
    key = given.emissions
    if forced is not None:
        key = key.detach().scatter(2, forced[:, :, None], torch.inf)
    entries = key.topk(BEAM, -1).indices
    left, right = given.left[entries[:, :-1]], given.right[entries[:, 1:]]
    return Candidates(given.emissions.gather(2, entries), entries, left @ right.transpose(-1, -2))
