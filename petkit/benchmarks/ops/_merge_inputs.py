"""Three models near a base, of which the merging benchmarks take slices as large as files come in."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops.merge_deltas import Terms

MODELS, COUNT = 3, 1 << 24
WEIGHTS = (0.5, 0.3, 0.2)


def family(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A base (COUNT,) and models (MODELS, COUNT), as far from it as fine-tuning goes."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(COUNT, generator=generator) * 0.02
    models = torch.stack([base + torch.randn(COUNT, generator=generator) * 0.001 for _ in range(MODELS)])
    return base.to(dtype), models.to(dtype)


def terms(low: float = 0.0, keep: float = 1.0) -> Terms:
    """The same for each model but for its weight and its key."""

    def full(value: float) -> Tensor:
        return torch.full((MODELS,), value, dtype=torch.float64)

    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    return Terms(weights, full(low), full(torch.inf), full(keep), torch.arange(MODELS))
