"""Arrays for the emulator: types as bits, packed codes, and one call in several thread orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# 0 ascending, 1 descending, others shuffled; a race or a missing barrier gives another result in one of them.
ORDERS = (0, 1, 2)
BITS = (1, 2, 4, 8)
DTYPES = ("float32", "bfloat16", "float16")
# The codebooks differ at 8 bits only.
CODEBOOKS = [(1, "normal_l1"), (2, "normal_l1"), (4, "normal_l1"), (8, "normal_l1"), (8, "petl_vit")]


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> torch.Tensor:
    """Standard normal values rounded to the element type."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(values).to(getattr(torch, dtype))


def to_bits(tensor: torch.Tensor) -> np.ndarray:
    """What the emulator takes: float32 and float64 as they are, 16-bit types as their bits."""
    tensor = tensor.contiguous()
    return tensor.numpy() if tensor.element_size() > 2 else tensor.view(torch.uint16).numpy()


def from_bits(array: np.ndarray, dtype: str) -> np.ndarray:
    """The float64 values of an array that came from the emulator."""
    if dtype in ("float32", "float64"):
        return array.astype(np.float64)
    return torch.from_numpy(array).view(getattr(torch, dtype)).double().numpy()


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Row-aligned packing of (..., columns) codes."""
    as_bits = (codes[..., None] >> np.arange(bits)) & 1
    flat = as_bits.reshape(*codes.shape[:-1], codes.shape[-1] * bits).astype(np.uint8)
    return np.packbits(flat, axis=-1, bitorder="little")


def random_codes(*shape: int, bits: int, seed: int = 0) -> np.ndarray:
    """Uniform codes."""
    return np.random.default_rng(seed).integers(0, 2**bits, shape)


def in_all_orders(call: Callable[[int], Any]) -> Any:
    """The result of a call, which must be the same bits in every thread order."""
    results = [call(order) for order in ORDERS]
    for other in results[1:]:
        for one, two in zip(as_tuple(results[0]), as_tuple(other), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(two), "thread orders disagree")
    return results[0]


def as_tuple(result: Any) -> tuple[Any, ...]:
    """A call's results, also when there is only one."""
    return result if isinstance(result, tuple) else (result,)
