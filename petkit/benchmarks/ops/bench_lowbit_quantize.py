"""Quantize and pack one 64 MiB float32 matrix."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case


def cases() -> list[Case]:
    """One case per bit width; two reads are counted, since the moments come before the first code."""
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    return [
        Case(
            f"lowbit_quantize {bits} bit 4096x4096",
            partial(ops.lowbit_quantize, weight, bits),
            {"torch bucketize + pack": partial(_in_torch, weight, bits, ops.lowbit_codebook(bits))},
            2 * weight.nbytes + weight.numel() * bits // 8,
            {"bandwidth": 0.4} if bits == 1 else {},
        )
        for bits in (1, 2, 4, 8)
    ]


def _in_torch(weight: Tensor, bits: int, levels: Tensor) -> Tensor:
    std, mean = torch.std_mean(weight)
    codes = torch.bucketize((weight - mean) / (std + 1e-5), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    places = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (codes.view(weight.shape[0], -1, 8 // bits) << places).sum(-1, dtype=torch.uint8)
