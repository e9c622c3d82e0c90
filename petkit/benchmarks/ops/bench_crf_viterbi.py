"""The best tag sequence of a linear-chain CRF, against pytorch-crf's decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._crf_inputs import BATCH, PEER, TIME, Inputs, inputs, pytorch_crf

GOALS = {16: 40.0, 64: 10.0, 256: 8.0}


def cases() -> list[Case]:
    """16, 64 and 256 tags."""
    return [_case(tags) for tags in GOALS]


def _case(tags: int) -> Case:
    given = inputs(tags)
    peer = pytorch_crf(given)
    return Case(
        f"crf_viterbi {BATCH}x{TIME}, {tags} tags",
        partial(ops.crf_viterbi, *given.arguments),
        {PEER: partial(_decode, peer, given)} if peer else {},
        goals={PEER: GOALS[tags]} if peer else {},
    )


def _decode(peer: Any, given: Inputs) -> object:
    with torch.no_grad():
        return peer.decode(given.emissions, mask=given.mask)
