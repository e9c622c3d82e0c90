"""The CRF cases of tests/ops/crf_cases.py as the emulator takes them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from tests.cuda_emulator.support import in_all_orders, to_bits
from tests.ops.crf_cases import Inputs, inputs

# One tag, one step, partial and several warps, more tags than a byte counts and than a block has threads.
SHAPES = [(1, 1, 1), (2, 1, 3), (2, 6, 1), (4, 7, 5), (2, 5, 33), (2, 4, 65), (2, 3, 130), (1, 3, 530)]


def run(cuda_crf: ModuleType, name: str, arguments: Inputs, *more: Any) -> Any:
    """The result of a launcher, which must be the same bits in every thread order."""
    given = [to_bits(part) if part.is_floating_point() else part.numpy() for part in arguments]
    dtype, launch = str(arguments.emissions.dtype)[6:], getattr(cuda_crf, name)
    return in_all_orders(lambda order: launch(cuda_crf.Crf(*given, dtype, order), *more))


def forbidding(forbidden: float, dtype: torch.dtype = torch.float32) -> Inputs:
    """Many forbidden transitions, and tags that no path has."""
    arguments = inputs(3, 6, 20, dtype)
    generator = torch.Generator().manual_seed(1)
    arguments.transitions[torch.rand((20, 20), generator=generator) < 0.6] = forbidden
    arguments.start[3:] = forbidden
    arguments.transitions[:, 7] = forbidden
    arguments.emissions[:, :, 8] = forbidden
    return arguments


def far_below(dtype: torch.dtype = torch.float32) -> Inputs:
    """A tag that lies 500 nats behind may be the only one that the next step leaves."""
    arguments = inputs(3, 12, 18, dtype, gaps=False)
    arguments.emissions[:, ::2, 0] -= 500
    arguments.emissions[:, ::3, 5] += 700
    arguments.transitions[5, :] -= 300
    arguments.transitions[1:, 0] = -1e4
    return arguments
