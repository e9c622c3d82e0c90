"""Checks and random numbers that the merging operators share."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops._checks import FLOAT_TYPES, check_float, check_tensor

_MASK = (1 << 64) - 1
# Constants of SplitMix64.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def check_models(models: Tensor) -> None:
    """Refuse what is no (n, count) tensor of a float dtype that models come in."""
    check_float("models", models)
    if models.dim() != 2 or len(models) == 0:
        raise InputError(f"models must be (n, count) with n >= 1, got {tuple(models.shape)}")


def check_base(base: Tensor, models: Tensor) -> None:
    """Refuse a base that differs from a row of the models in shape, dtype or device."""
    check_tensor("base", base)
    if base.shape != models.shape[1:] or base.dtype != models.dtype or base.device != models.device:
        raise InputError(
            f"base must be {models.dtype} {tuple(models.shape[1:])} on {models.device} as the models are, "
            f"got {base.dtype} {tuple(base.shape)} on {base.device}"
        )


def check_vector(name: str, values: Tensor, count: int, dtype: torch.dtype = torch.float64) -> None:
    """Refuse what is no (count,) tensor of the dtype on the CPU."""
    check_tensor(name, values)
    if values.shape != (count,) or values.dtype != dtype or values.device.type != "cpu":
        raise InputError(
            f"{name} must be {str(dtype)[6:]} ({count},) on the CPU, "
            f"got {values.dtype} {tuple(values.shape)} on {values.device}"
        )


def result_dtype(dtype: torch.dtype | None, models: Tensor) -> torch.dtype:
    """The dtype of a result; None is that of the models."""
    chosen = models.dtype if dtype is None else dtype
    if chosen not in FLOAT_TYPES:
        raise InputError(f"dtype must be float32, bfloat16 or float16, got {chosen}")
    return chosen


def uniform(key: int, start: int, count: int) -> Tensor:
    """Uniform numbers of places, each a function of the key and the place alone.

    Args:
        key: of the stream, 64 bits.
        start: first place.
        count: how many.

    Returns:
        float32 (count,), multiples of 2^-24 in [0, 1).

    Source:
        SplitMix64 (Steele, Lea and Flood 2014) at state key + (place + 1) step.
    """
    # int64 wraps as the algorithm's uint64 does; only shifts differ, for they keep the sign.
    places = torch.arange(start + 1, start + count + 1, dtype=torch.int64)
    state = places * _signed(_STEP) + _signed(key)
    state = (state ^ _shifted(state, 30)) * _signed(_FIRST)
    state = (state ^ _shifted(state, 27)) * _signed(_SECOND)
    state = state ^ _shifted(state, 31)
    return _shifted(state, 40).float() * 2.0**-24


def _shifted(values: Tensor, bits: int) -> Tensor:
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
