"""Marginals of a linear-chain CRF, against the gradient that autograd takes of a plain forward recursion."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._crf_inputs import BATCH, TIME, Inputs, inputs


def cases() -> list[Case]:
    """16 and 64 tags."""
    return [
        Case(
            f"crf_marginals {BATCH}x{TIME}, {tags} tags",
            partial(ops.crf_marginals, *inputs(tags).arguments),
            {"autograd in plain torch": partial(_by_autograd, inputs(tags))},
        )
        for tags in (16, 64)
    ]


def _by_autograd(given: Inputs) -> Tensor:
    emissions = given.emissions.detach().requires_grad_()
    alpha = emissions[:, 0] + given.start
    for t in range(1, TIME):
        step = (alpha[:, :, None] + given.transitions).logsumexp(1) + emissions[:, t]
        alpha = torch.where(given.mask[:, t, None], step, alpha)
    log_z = (alpha + given.end).logsumexp(-1).sum()
    return torch.autograd.grad(log_z, emissions)[0]
