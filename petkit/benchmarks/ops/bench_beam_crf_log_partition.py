"""The loss of a beam CRF over a vocabulary, forward and backward, against plain torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._beam_crf_inputs import PEER, SHAPE, Inputs, candidates, inputs
from petkit.ops.beam_crf_log_partition import log_partition_and_score

GOAL = 6.0
# Beside the dense gradient of the emissions.
MEMORY_LIMIT = 32 << 20


def cases() -> list[Case]:
    """Float32."""
    given = inputs()
    return [
        Case(
            f"beam CRF loss and gradient {SHAPE}",
            partial(_loss, given),
            {PEER: partial(_in_torch, given)},
            goals={PEER: GOAL},
            memory_limit=MEMORY_LIMIT + given.emissions.nbytes,
        )
    ]


def _live(given: Inputs) -> Inputs:
    emissions, mask, left, right, targets = given
    fresh = [part.detach().requires_grad_() for part in (emissions, left, right)]
    return Inputs(fresh[0], mask, fresh[1], fresh[2], targets)


def _loss(given: Inputs) -> list[Tensor | None]:
    live = _live(given)
    emissions, mask, left, right, targets = live
    log_z, score = log_partition_and_score(emissions, mask, left, right, targets=targets)
    torch.autograd.backward(((log_z - score) / mask.sum(-1)).mean())
    return [part.grad for part in (emissions, left, right)]


def _in_torch(given: Inputs) -> list[Tensor | None]:
    live = _live(given)
    emissions, mask, left, right, targets = live
    found = candidates(live, targets)
    alpha = found.scores[:, 0]
    for t in range(1, mask.shape[1]):
        step = (alpha[:, :, None] + found.transitions[:, t - 1]).logsumexp(1) + found.scores[:, t]
        alpha = torch.where(mask[:, t, None], step, alpha)
    gold = emissions.gather(2, targets[:, :, None])[:, :, 0]
    steps = (left[targets[:, :-1]] * right[targets[:, 1:]]).sum(-1)
    score = (gold * mask).sum(-1) + (steps * mask[:, 1:]).sum(-1)
    torch.autograd.backward(((alpha.logsumexp(-1) - score) / mask.sum(-1)).mean())
    return [part.grad for part in (emissions, left, right)]
