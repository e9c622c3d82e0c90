"""The CRF cases of tests/ops/crf_cases.py as the emulator takes them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from tests.cuda_emulator.support import in_all_orders, to_bits
from tests.ops.crf_cases import Inputs

# One tag, one step, partial and several warps, more tags than a byte counts and than a block has threads.
SHAPES = [(1, 1, 1), (2, 1, 3), (2, 6, 1), (4, 7, 5), (2, 5, 33), (2, 4, 65), (2, 3, 130), (1, 3, 530)]


def run(cuda_crf: ModuleType, name: str, arguments: Inputs, *more: Any) -> Any:
    """The result of a launcher, which must be the same bits in every thread order."""
    given = [to_bits(part) if part.is_floating_point() else part.numpy() for part in arguments]
    dtype, launch = str(arguments.emissions.dtype)[6:], getattr(cuda_crf, name)
    return in_all_orders(lambda order: launch(cuda_crf.Crf(*given, dtype, order), *more))
