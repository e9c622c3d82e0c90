"""Unpack one 64 MiB float32 matrix."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case


def cases() -> list[Case]:
    """One case per bit width; what it writes counts as moved."""
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    made = []
    for bits in (1, 2, 4, 8):
        packed, shift, scale = ops.lowbit_quantize(weight, bits)
        table = shift + scale * ops.lowbit_codebook(bits)
        made.append(
            Case(
                f"lowbit_dequantize {bits} bit 4096x4096",
                partial(ops.lowbit_dequantize, packed, shift, scale, bits, weight.shape[1]),
                {"torch unpack + index": partial(_in_torch, packed, bits, table)},
                weight.nbytes + packed.nbytes,
                {"bandwidth": 0.4} if bits == 1 else {},
            )
        )
    return made


def _in_torch(packed: Tensor, bits: int, table: Tensor) -> Tensor:
    places = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes = (packed.unsqueeze(-1) >> places) & ((1 << bits) - 1)
    return table[codes.flatten(1).int()]
