"""What the CRF benchmarks share: 32 ragged rows of 128 positions, and the peers that can be imported."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BATCH, TIME = 32, 128
PEER = "pytorch-crf"


class Inputs(NamedTuple):
    """Arguments of a CRF op, and gold tags for the peers."""

    emissions: Tensor
    mask: Tensor
    transitions: Tensor
    start: Tensor
    end: Tensor
    tags: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Without the tags."""
        return self[0], self[1], self[2], self[3], self[4]


def inputs(tags: int) -> Inputs:
    """Rows of 64 to 128 positions."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(TIME // 2, TIME + 1, (BATCH, 1), generator=generator)
    lengths[0] = TIME
    parameters = [torch.rand(shape, generator=generator) * 0.2 - 0.1 for shape in ((tags, tags), tags, tags)]
    return Inputs(
        torch.randn(BATCH, TIME, tags, generator=generator),
        torch.arange(TIME) < lengths,
        parameters[0],
        parameters[1],
        parameters[2],
        torch.randint(tags, (BATCH, TIME), generator=generator),
    )


def pytorch_crf(given: Inputs) -> Any | None:
    """pytorch-crf's module with the same parameters; None where it is not installed."""
    try:
        module = import_module("torchcrf")
    except ImportError:
        log.warning("pytorch-crf is not installed and is left out of the comparison")
        return None
    peer = module.CRF(len(given.start), batch_first=True)
    with torch.no_grad():
        peer.transitions.copy_(given.transitions)
        peer.start_transitions.copy_(given.start)
        peer.end_transitions.copy_(given.end)
    return peer
