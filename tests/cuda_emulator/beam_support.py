"""The beam CRF cases of tests/ops/beam_crf_cases.py as the emulator takes them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from tests.cuda_emulator.support import in_all_orders, to_bits
from tests.ops.beam_crf_cases import Inputs

# Batch, time, vocabulary, rank, beam: one of everything, around a warp, around a tile of a product, a
# vocabulary of several tiles, more candidates than a byte counts.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 5, 20, 3, 1),
    (3, 4, 50, 5, 16),
    (2, 4, 97, 17, 33),
    (2, 3, 2100, 32, 64),
    (2, 3, 130, 65, 70),
    (1, 3, 300, 4, 260),
]
BUDGET = 256 << 20


def run(
    cuda_beam: ModuleType,
    name: str,
    arguments: Inputs,
    *more: Any,
    targets: bool = False,
    budget: int = BUDGET,
) -> Any:
    """The result of a launcher, which must be the same bits in every thread order."""
    emissions, mask, left, right, beam, dynamic, wanted = arguments
    given = (
        to_bits(emissions),
        mask.numpy(),
        left.numpy(),
        right.numpy(),
        min(beam, emissions.shape[2]),
        None if dynamic is None else dynamic.numpy(),
        wanted.numpy() if targets else None,
        str(emissions.dtype)[6:],
    )
    launch = getattr(cuda_beam, name)
    return in_all_orders(lambda order: launch(cuda_beam.Beam(*given, order, budget), *more))


def full_mask(arguments: Inputs) -> Inputs:
    """The same with every position set."""
    return arguments._replace(mask=arguments.mask.clone().fill_(True))


def any_layout(arguments: Inputs) -> Inputs:
    """The same numbers, with every tensor laid out in an unusual way."""
    return arguments._replace(
        emissions=arguments.emissions.transpose(0, 1).contiguous().transpose(0, 1),
        mask=arguments.mask.t().contiguous().t(),
        left=arguments.left.t().contiguous().t(),
        right=torch.stack([arguments.right, arguments.right], -1)[..., 0],
        dynamic=arguments.dynamic.transpose(2, 3).contiguous().transpose(2, 3),
        targets=arguments.targets.t().contiguous().t(),
    )
