"""`lowbit_quantize`: a weight matrix to packed codes, shift and scale."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library
from petkit.ops._checks import check_weight, row_bytes
from petkit.ops._packing import codes_of, moments, pack_rows
from petkit.ops.lowbit_codebook import levels_on


def lowbit_quantize(weight: Tensor, bits: int, kind: str = "normal_l1") -> tuple[Tensor, Tensor, Tensor]:
    """Round a weight matrix to the nearest codebook levels of its normalised values and pack them.

    Args:
        weight: (out, in) float32, bfloat16 or float16, finite, at least two values.
        bits: 1, 2, 4 or 8.
        kind: the codebook, see `lowbit_codebook`.

    Returns:
        packed uint8 (out, ceil(in * bits / 8)), the first code in the lowest bits, padding zero; shift
        float32 (), the mean; scale float32 (), the unbiased standard deviation. A constant matrix gives
        scale 0 and is reproduced exactly.

    Raises:
        InputError: no matrix, another dtype, fewer than two weights, or a weight that is not finite (named).

    Source:
        Jie et al. (ICCV 2023), section on quantisation: n = (w - mean) / (std + 1e-5), nearest level. A value
        midway between two levels takes the lower one, as the original's packer does.
    """
    check_weight(weight)
    packed, shift, scale = torch.ops.petkit.lowbit_quantize(
        weight.detach(), levels_on(bits, kind, weight.device), bits
    )
    if not torch.compiler.is_compiling() and not torch.isfinite(scale):
        _refuse_not_finite(weight)
    return packed, shift, scale


def _refuse_not_finite(weight: Tensor) -> None:
    wrong = torch.nonzero(~torch.isfinite(weight))
    if len(wrong) == 0:
        raise InputError("weight must have a standard deviation that fits float32: its values are too large")
    row, column = wrong[0].tolist()
    raise InputError(
        f"weight must be finite, got {weight[row, column].item()} at [{row}, {column}] "
        f"({len(wrong)} of {weight.numel()} values are not finite)"
    )


def _default(weight: Tensor, levels: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    shift, scale = moments(weight)
    return pack_rows(codes_of(weight, shift, scale, levels), bits), shift, scale


def _fake(weight: Tensor, levels: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = weight.shape
    packed = weight.new_empty((rows, row_bytes(columns, bits)), dtype=torch.uint8)
    return packed, weight.new_empty((), dtype=torch.float32), weight.new_empty((), dtype=torch.float32)


_library.define(
    "lowbit_quantize(Tensor weight, Tensor levels, int bits) -> (Tensor packed, Tensor shift, Tensor scale)",
    _default,
    _fake,
)
