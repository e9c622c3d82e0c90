"""Decoding a beam CRF over a vocabulary, against plain torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._beam_crf_inputs import BEAM, PEER, SHAPE, Inputs, candidates, inputs

GOAL = 4.0


def cases() -> list[Case]:
    """Float32 and bfloat16."""
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        given = inputs(dtype)
        made.append(
            Case(
                f"beam_crf_viterbi {str(dtype)[6:]} {SHAPE}",
                partial(ops.beam_crf_viterbi, *given[:4]),
                {PEER: partial(_in_torch, given)},
                given.emissions.nbytes,
                {PEER: GOAL} if dtype == torch.float32 else {},
            )
        )
    return made


def _in_torch(given: Inputs) -> Tensor:
    with torch.no_grad():
        found = candidates(given)
        stay = torch.arange(BEAM).expand(len(found.scores), BEAM)
        best, pointers = found.scores[:, 0], []
        for t in range(1, given.mask.shape[1]):
            values, sources = (best[:, :, None] + found.transitions[:, t - 1]).max(1)
            valid = given.mask[:, t, None]
            best = torch.where(valid, values + found.scores[:, t], best)
            pointers.append(torch.where(valid, sources, stay))
        at = best.argmax(-1, keepdim=True)
        places = [at]
        for pointer in reversed(pointers):
            at = pointer.gather(1, at)
            places.append(at)
        return found.entries.gather(-1, torch.stack(places[::-1], 1))[:, :, 0]
