"""`lowbit_dequantize`: packed codes back to a dense matrix, and the transposition of packed codes."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library
from petkit.ops._checks import FLOAT_TYPES, check_packed, row_bytes
from petkit.ops._packing import decode_rows, pack_rows, unpack_rows, values_of
from petkit.ops.lowbit_codebook import levels_on


def lowbit_dequantize(
    packed: Tensor,
    shift: Tensor,
    scale: Tensor,
    bits: int,
    in_features: int,
    kind: str = "normal_l1",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The dense matrix that packed codes stand for: shift + scale * level.

    `in_features` must be the width that was packed. Rows are padded to whole bytes, so another width that
    needs as many bytes a row (at 1 bit 57 to 64, say) cannot be told apart: rows are then cut off, or their
    padding is decoded.

    Args:
        packed: uint8 (out, ceil(in_features * bits / 8)) of `lowbit_quantize`.
        shift: float32 scalar.
        scale: float32 scalar.
        bits: 1, 2, 4 or 8.
        in_features: codes in a row, as many as were packed.
        kind: the codebook, see `lowbit_codebook`.
        dtype: float32, bfloat16 or float16; the float32 value is rounded once.

    Returns:
        (out, in_features) of the dtype.

    Raises:
        InputError: dtypes that do not fit, or a width that needs another number of bytes a row.
    """
    levels = levels_on(bits, kind, packed.device)
    check_packed(packed, shift, scale, bits, in_features)
    if dtype not in FLOAT_TYPES:
        raise InputError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    result: Tensor = torch.ops.petkit.lowbit_dequantize(
        packed, shift, scale, levels, bits, in_features, dtype
    )
    return result


def transpose_packed(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Transpose stacks of packed matrices without decoding them.

    Args:
        packed: uint8 (n, rows, ceil(columns * bits / 8)).
        bits: 1, 2, 4 or 8.
        columns: codes in a row.

    Returns:
        uint8 (n, columns, ceil(rows * bits / 8)), padding zero.

    Raises:
        InputError: shapes that do not fit.
    """
    expected = row_bytes(columns, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 3 or packed.shape[2] != expected:
        raise InputError(
            f"packed must be uint8 (n, rows, {expected}) for {columns} codes of {bits} bits a row, "
            f"got {packed.dtype} {tuple(packed.shape)}"
        )
    result: Tensor = torch.ops.petkit.lowbit_transpose(packed, bits, columns)
    return result


def _default(
    packed: Tensor,
    shift: Tensor,
    scale: Tensor,
    levels: Tensor,
    bits: int,
    in_features: int,
    dtype: torch.dtype,
) -> Tensor:
    return decode_rows(packed, values_of(shift, scale, levels).to(dtype), bits, in_features)


def _fake(
    packed: Tensor,
    shift: Tensor,
    scale: Tensor,
    levels: Tensor,
    bits: int,
    in_features: int,
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty((packed.shape[0], in_features), dtype=dtype)


def _transpose_default(packed: Tensor, bits: int, columns: int) -> Tensor:
    return pack_rows(unpack_rows(packed, bits, columns).transpose(1, 2), bits)


def _transpose_fake(packed: Tensor, bits: int, columns: int) -> Tensor:
    return packed.new_empty((packed.shape[0], columns, row_bytes(packed.shape[1], bits)))


_library.define(
    "lowbit_dequantize(Tensor packed, Tensor shift, Tensor scale, Tensor levels, int bits, int in_features, "
    "ScalarType dtype) -> Tensor",
    _default,
    _fake,
)
_library.define(
    "lowbit_transpose(Tensor packed, int bits, int columns) -> Tensor", _transpose_default, _transpose_fake
)
