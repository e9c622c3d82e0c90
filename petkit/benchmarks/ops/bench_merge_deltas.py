"""Task arithmetic, TIES and DARE of three bfloat16 models and their base, against plain torch in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._merge_inputs import COUNT, MODELS, WEIGHTS, family, terms

TORCH = "float32 operations of torch"
# Of differences with a standard deviation of 0.001, two fifths are smaller.
LOW, KEEP = 0.0005, 0.5


def cases() -> list[Case]:
    """A case per method. TIES: the thresholds are given, as `magnitude_counts` finds them."""
    base, models = family(torch.bfloat16)
    runs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], dict[str, float]]] = {
        "task arithmetic": (
            partial(ops.merge_deltas, base, models, terms()),
            partial(_task, base, models),
            {TORCH: 3.0},
        ),
        "TIES": (
            partial(ops.merge_deltas, base, models, terms(LOW), consensus="sum", normalize=True),
            partial(_ties, base, models),
            {TORCH: 8.0},
        ),
        "DARE": (
            partial(ops.merge_deltas, base, models, terms(keep=KEEP)),
            partial(_dare, base, models),
            {TORCH: 4.0},
        ),
    }
    return [
        Case(
            f"merge_deltas {name} {MODELS} x {COUNT} bfloat16",
            petkit,
            {TORCH: peer},
            (MODELS + 2) * COUNT * base.element_size(),
            goals,
        )
        for name, (petkit, peer, goals) in runs.items()
    ]


def _task(base: Tensor, models: Tensor) -> Tensor:
    origin = base.float()
    total = torch.zeros_like(origin)
    for row, weight in zip(models, WEIGHTS, strict=True):
        total.add_(row.float().sub_(origin), alpha=weight)
    return total.add_(origin).to(base.dtype)


def _ties(base: Tensor, models: Tensor) -> Tensor:
    origin = base.float()
    weights = torch.tensor(WEIGHTS)[:, None]
    deltas = models.float().sub_(origin)
    deltas.masked_fill_(deltas.abs() < LOW, 0.0).mul_(weights)
    elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    agrees = deltas.sign() == elected
    divisor = (agrees * weights).sum(0)
    total = deltas.mul_(agrees).sum(0).div_(divisor.masked_fill_(divisor < 1e-8, 1.0))
    return total.add_(origin).to(base.dtype)


def _dare(base: Tensor, models: Tensor) -> Tensor:
    origin = base.float()
    total = torch.zeros_like(origin)
    for row, weight in zip(models, WEIGHTS, strict=True):
        kept = torch.empty_like(origin).bernoulli_(KEEP)
        total.addcmul_(row.float().sub_(origin), kept, value=weight / KEEP)
    return total.add_(origin).to(base.dtype)
