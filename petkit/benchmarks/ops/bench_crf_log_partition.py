"""Log-partition of a linear-chain CRF, alone and with its gradient, against pytorch-crf's log-likelihood."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._crf_inputs import BATCH, PEER, TIME, Inputs, inputs, pytorch_crf

FORWARD_GOALS = {16: 15.0, 64: 10.0, 256: 15.0}
BACKWARD_GOAL = 10.0
MEMORY_LIMIT = 16 << 20


def cases() -> list[Case]:
    """16, 64 and 256 tags; with the gradient also the memory, which is what many tags run out of."""
    return [case for tags in FORWARD_GOALS for case in (_forward(tags), _backward(tags))]


def _forward(tags: int) -> Case:
    given = inputs(tags)
    peer = pytorch_crf(given)
    return Case(
        f"crf_log_partition {BATCH}x{TIME}, {tags} tags",
        partial(ops.crf_log_partition, *given.arguments),
        {PEER: partial(_likelihood, peer, given)} if peer else {},
        goals={PEER: FORWARD_GOALS[tags]} if peer else {},
    )


def _backward(tags: int) -> Case:
    given = inputs(tags)
    peer = pytorch_crf(given)
    return Case(
        f"crf_log_partition and gradient, {tags} tags",
        partial(_gradient, given),
        {PEER: partial(_peers_gradient, peer, given)} if peer else {},
        goals={PEER: BACKWARD_GOAL} if peer else {},
        memory_limit=MEMORY_LIMIT if tags == max(FORWARD_GOALS) else None,
    )


def _likelihood(peer: Any, given: Inputs) -> object:
    with torch.no_grad():
        return peer(given.emissions, given.tags, mask=given.mask)


def _gradient(given: Inputs) -> object:
    emissions, mask, *parameters = given.arguments
    live = [part.detach().requires_grad_() for part in (emissions, *parameters)]
    torch.autograd.backward(ops.crf_log_partition(live[0], mask, *live[1:]).sum())
    return [part.grad for part in live]


def _peers_gradient(peer: Any, given: Inputs) -> object:
    emissions = given.emissions.detach().requires_grad_()
    peer.zero_grad()
    torch.autograd.backward(peer(emissions, given.tags, mask=given.mask))
    return emissions.grad
