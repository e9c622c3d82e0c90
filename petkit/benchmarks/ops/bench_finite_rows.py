"""Whether three models hold only finite numbers, against torch.isfinite."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._merge_inputs import COUNT, MODELS, family

TORCH = "torch.isfinite"


def cases() -> list[Case]:
    """One case per dtype, all numbers finite."""
    made = []
    for dtype in (torch.bfloat16, torch.float32):
        _, models = family(dtype)
        name = f"finite_rows {MODELS} x {COUNT} {str(dtype)[6:]}"
        run, peer = partial(ops.finite_rows, models), partial(_in_torch, models)
        made.append(Case(name, run, {TORCH: peer}, models.nbytes, {TORCH: 3.0, "bandwidth": 0.7}))
    return made


def _in_torch(models: Tensor) -> Tensor:
    return models.isfinite().all(1)
