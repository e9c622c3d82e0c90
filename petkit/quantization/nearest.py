"""Post-training quantisation to the nearest level; the weights' moments give shift and scale."""

from __future__ import annotations

from torch import Tensor

from petkit.artifacts.packed import PackedMatrix
from petkit.errors import InputError
from petkit.ops import lowbit_quantize


def nearest(weight: Tensor, bits: int, kind: str = "normal_l1") -> PackedMatrix:
    """Quantise one matrix: shift is its mean, scale its standard deviation, codes are the nearest levels.

    Args:
        weight: (out, in), floating point, finite.
        bits: 1, 2, 4 or 8 bits a weight.
        kind: codebook, "normal_l1" or "petl_vit".

    Returns:
        The packed matrix.

    Raises:
        InputError: the weight is not a finite floating-point matrix.

    Source:
        Jie, Wang and Deng (2023), the quantiser of section 3 applied once after training.
    """
    check_matrix(weight)
    packed, shift, scale = lowbit_quantize(weight.detach().float(), bits, kind)
    return PackedMatrix.from_rows(packed, shift, scale, bits, weight.shape[1], kind)


def check_matrix(weight: Tensor) -> None:
    """Refuse what is not a finite floating-point matrix.

    Args:
        weight: any tensor.

    Raises:
        InputError: with the shape, the dtype or the count of values that are not finite.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        got = f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise InputError(f"weight must be a floating-point matrix (out, in), got {got}")
    bad = int((~weight.isfinite()).sum())
    if bad:
        raise InputError(f"weight must be finite, got {bad} NaN or infinite values of {weight.numel()}")
