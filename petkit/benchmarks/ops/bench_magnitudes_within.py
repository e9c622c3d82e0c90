"""The magnitudes of a narrow range of three models' differences, against comparisons in torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._merge_inputs import COUNT, MODELS, family

PEER = "torch comparisons"
# A hundredth of the numbers on both sides of the k-th, as wide as a sample leaves it.
RANK, MARGIN = COUNT // 2, COUNT // 100


def cases() -> list[Case]:
    """A range around the median."""
    base, models = family(torch.bfloat16)
    sizes = [(row.float() - base.float()).abs_() for row in models]
    low, high = (
        torch.stack([size.kthvalue(rank).values for size in sizes]).double()
        for rank in (RANK - MARGIN, RANK + MARGIN)
    )
    return [
        Case(
            f"magnitudes_within {MODELS} x {COUNT} bfloat16, 2 % inside",
            partial(ops.magnitudes_within, base, models, low, high),
            {PEER: partial(_compared, base, models, low.tolist(), high.tolist())},
            2 * MODELS * COUNT * base.element_size(),
            {PEER: 20.0},
        )
    ]


def _compared(base: Tensor, models: Tensor, low: list[float], high: list[float]) -> list[Tensor]:
    origin, found = base.float(), []
    for row, least, most in zip(models, low, high, strict=True):
        sizes = (row.float() - origin).abs_()
        over = sizes > least
        found += [(sizes < least).sum(), over.sum(), (sizes <= most).sum(), sizes[over & (sizes < most)]]
    return found
