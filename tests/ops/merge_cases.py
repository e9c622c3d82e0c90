"""Models for the tests of the merging operators, and comparison bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops import _library

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# None, one, around the vector widths, a tile of 256 and a block of 4,096, and more than one thread takes.
SIZES = (0, 1, 7, 16, 63, 65, 257, 4097, 70001)
COUNTS = tuple(range(1, 10))


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def family(n: int, count: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A base and models near it, some of whose numbers are those of the base."""
    base = normal(count, dtype=dtype, seed=seed)
    change = normal(n, count, seed=seed + 1) * (normal(n, count, seed=seed + 2) > -0.5)
    return base, (base.float() + 0.3 * change).to(dtype)


def weights_of(n: int) -> Tensor:
    """As float64, no two of them alike and one below zero, so that no vote is a tie by chance."""
    weights = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) + 0.5
    if n > 3:
        weights[2] *= -0.4
    return weights


def exact(tensor: Tensor) -> Tensor:
    """Patterns of bits, all kinds of nan as one."""
    whole = torch.int32 if tensor.element_size() == 4 else torch.int16
    return tensor.contiguous().masked_fill(tensor.isnan(), torch.nan).view(whole)


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Equal to the bit: -0 is not 0."""
    assert got.dtype == expected.dtype
    assert torch.equal(exact(got), exact(expected))


def default(name: str, *arguments: object) -> Tensor:
    found: Tensor = _library.default_of(name)(*arguments)
    return found


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
