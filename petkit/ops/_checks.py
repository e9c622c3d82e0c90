"""Argument checks shared by the operators; each says what was expected and what came."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from petkit.errors import InputError

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def row_bytes(in_features: int, bits: int) -> int:
    """Bytes of a row of packed codes: rows start on byte boundaries."""
    return (in_features * bits + 7) // 8


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor: a list or a number."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(value).__name__}; use torch.tensor")


def bool_mask(name: str, mask: Tensor) -> Tensor:
    """Take a mask of bool, or of numbers that are 0 and 1.

    Args:
        name: of the argument, for the message.
        mask: any shape.

    Returns:
        bool, of the mask's shape.

    Raises:
        InputError: complex numbers, or others than 0 and 1, which would all count; looked for on the CPU
            alone, where it makes nobody wait, and not under torch.compile.
    """
    check_tensor(name, mask)
    if mask.dtype == torch.bool:
        return mask
    if mask.is_complex():
        raise InputError(f"{name} must be bool or numbers of 0 and 1, got {mask.dtype}")
    kept = mask != 0
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        strange = kept & (mask != 1)
        if strange.any():
            raise InputError(
                f"{name} must be bool or numbers of 0 and 1, got {float(mask[strange][0]):g} at "
                f"{first_place(strange)}"
            )
    return kept


def first_place(found: Tensor) -> str:
    """Where the first of some values of tokens stands.

    Args:
        found: bool (tokens,), (batch, tokens), (batch, tokens, k) or of another shape, true somewhere.

    Returns:
        Text such as `batch 0, token 3`; numbers from 0.
    """
    place = found.nonzero()[0].tolist()
    names = ("token",) if len(place) == 1 else ("batch", "token", "rank")
    if not place or len(place) > len(names):
        return f"index {tuple(place)}"
    return ", ".join(f"{name} {number}" for name, number in zip(names, place, strict=False))


def whole_number(name: str, value: Any, least: int) -> int:
    """Take an integer of any kind, such as numpy's, that is not too small.

    Args:
        name: of the argument, for the message.
        value: what was given.
        least: what it must be at least.

    Returns:
        The number as an int.

    Raises:
        InputError: it is no integer, true or false, or below `least`.
    """
    is_truth = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    try:
        # A compiler's trace knows an int as such, and not what the call would make of it.
        number = value if isinstance(value, int) else operator.index(value)
    except TypeError:
        number = None
    if number is None or is_truth or number < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(number)


def check_float(name: str, tensor: Tensor) -> None:
    """Refuse every dtype but float32, bfloat16 and float16."""
    check_tensor(name, tensor)
    if tensor.dtype not in FLOAT_TYPES:
        raise InputError(f"{name} must be float32, bfloat16 or float16, got {tensor.dtype}; convert it first")


def check_weight(weight: Tensor) -> None:
    """Refuse what has no unbiased standard deviation: anything but a matrix of at least two weights."""
    check_float("weight", weight)
    if weight.dim() != 2:
        raise InputError(f"weight must be a matrix (out, in), got shape {tuple(weight.shape)}")
    if weight.numel() < 2:
        raise InputError(
            f"weight must hold at least 2 values for a standard deviation, got shape {tuple(weight.shape)}"
        )


def check_packed(packed: Tensor, shift: Tensor, scale: Tensor, bits: int, in_features: int) -> None:
    """Refuse packed codes of another row length, and a shift or scale that is no scalar."""
    for name, value in (("packed", packed), ("shift", shift), ("scale", scale)):
        check_tensor(name, value)
    expected = row_bytes(in_features, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != expected:
        raise InputError(
            f"packed must be uint8 (out, {expected}) for {in_features} codes of {bits} bits a row, "
            f"got {packed.dtype} {tuple(packed.shape)}"
        )
    for name, value in (("shift", shift), ("scale", scale)):
        if value.dtype != torch.float32 or value.dim() != 0:
            raise InputError(f"{name} must be a float32 scalar, got {value.dtype} {tuple(value.shape)}")
