"""The quantiser inside a training step, forward and backward, on one adapter matrix of a ViT-B."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case


def cases() -> list[Case]:
    """One case for the fewest and one for the most bits."""
    weight = torch.randn(32, 768, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return [
        Case(
            f"lowbit_fake_quantize {bits} bit 32x768, both ways",
            partial(_ours, weight, bits),
            {"torch eager": partial(_eager, weight, ops.lowbit_codebook(bits))},
        )
        for bits in (1, 8)
    ]


def _ours(weight: Tensor, bits: int) -> Tensor:
    (gradient,) = torch.autograd.grad(ops.lowbit_fake_quantize(weight, bits).sum(), weight)
    return gradient


def _eager(weight: Tensor, levels: Tensor) -> Tensor:
    std, mean = torch.std_mean(weight)
    normal = (weight - mean) / (std + 1e-5)
    quantized = levels[torch.bucketize(normal.detach(), (levels[1:] + levels[:-1]) / 2)]
    surrogate = mean + std * (normal + (quantized - normal).detach())
    (gradient,) = torch.autograd.grad(surrogate.sum(), weight)
    return gradient
