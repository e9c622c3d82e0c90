"""The magnitude below which a share of three models' differences lies, against torch.kthvalue."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._merge_inputs import COUNT, MODELS, family

RANK = COUNT * 4 // 5
KTH, BINCOUNT = "torch.kthvalue", "torch.bincount"


def cases() -> list[Case]:
    """The first pass alone, and both with the search for the threshold."""
    base, models = family(torch.bfloat16)
    moved = 2 * MODELS * COUNT * base.element_size()
    name = f"magnitude_counts {MODELS} x {COUNT} bfloat16"
    return [
        Case(
            f"{name}, one pass",
            partial(ops.magnitude_counts, base, models),
            {BINCOUNT: partial(_bincount, base, models)},
            moved,
            {BINCOUNT: 4.0},
        ),
        Case(
            f"{name}, the k-th of each",
            partial(_select, base, models),
            {KTH: partial(_kth, base, models)},
            2 * moved,
            {KTH: 8.0},
        ),
    ]


def _select(base: Tensor, models: Tensor) -> Tensor:
    upper, rest = _step(ops.magnitude_counts(base, models), torch.full((MODELS,), RANK))
    lower, _ = _step(ops.magnitude_counts(base, models, upper), rest)
    return (upper << 16 | lower).to(torch.int32).view(torch.float32)


def _step(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """The half that the number of each rank has, and its rank among those of that half."""
    totals = counts.cumsum(1)
    halves = torch.searchsorted(totals, ranks[:, None], right=True)
    return halves[:, 0], ranks - (totals - counts).gather(1, halves)[:, 0]


def _bincount(base: Tensor, models: Tensor) -> Tensor:
    origin = base.float()
    sizes = [(row.float() - origin).abs().view(torch.int32) >> 16 for row in models]
    return torch.stack([torch.bincount(size, minlength=1 << 16) for size in sizes])


def _kth(base: Tensor, models: Tensor) -> Tensor:
    origin = base.float()
    return torch.stack([(row.float() - origin).abs_().kthvalue(RANK + 1).values for row in models])
