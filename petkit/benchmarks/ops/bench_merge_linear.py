"""The weighted sum of three models of 16 million numbers, against plain torch in float32."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._merge_inputs import COUNT, MODELS, WEIGHTS, family

TORCH = "float32 sums of torch"
GOALS = {torch.bfloat16: {TORCH: 3.0, "bandwidth": 0.5}, torch.float32: {TORCH: 1.5}}


def cases() -> list[Case]:
    """One case per dtype; the result, of the models' dtype, counts as moved once."""
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    made = []
    for dtype, goals in GOALS.items():
        _, models = family(dtype)
        made.append(
            Case(
                f"merge_linear {MODELS} x {COUNT} {str(dtype)[6:]}",
                partial(ops.merge_linear, models, weights),
                {TORCH: partial(_in_torch, models)},
                (MODELS + 1) * COUNT * dtype.itemsize,
                goals,
            )
        )
    return made


def _in_torch(models: Tensor) -> Tensor:
    total = models[0].float() * WEIGHTS[0]
    for row, weight in zip(models[1:], WEIGHTS[1:], strict=True):
        total.add_(row.float(), alpha=weight)
    return total.to(models.dtype)
