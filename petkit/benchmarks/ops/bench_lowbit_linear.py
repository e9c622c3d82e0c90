"""A packed 4096x4096 matrix times 1 and 32 rows, against float32 `F.linear`."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import linear

from petkit import ops
from petkit.benchmarks.harness import Case

PEER = "F.linear float32"


def cases() -> list[Case]:
    """One case per bit width and number of rows."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4096, 4096, generator=generator)
    made = []
    for bits in (1, 2, 4, 8):
        packed, shift, scale = ops.lowbit_quantize(weight, bits)
        for rows, goal in ((1, 8.0), (32, 1.0)):
            x = torch.randn(rows, 4096, generator=generator)
            made.append(
                Case(
                    f"lowbit_linear {bits} bit 4096x4096, {rows} rows",
                    partial(ops.lowbit_linear, x, packed, shift, scale, bits),
                    {PEER: partial(linear, x, weight)},
                    packed.nbytes + 2 * x.nbytes,
                    {PEER: goal} if bits == 1 else {},
                )
            )
    return made
