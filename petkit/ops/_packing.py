"""The quantiser's arithmetic and the packed layout in pure torch: what every default is made of.

cpp/include/petkit/quantizer.h holds the same definitions for the compiled kernels; the codes and values agree
bit for bit, given the same shift and scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops._checks import row_bytes

EPSILON = 1e-5
CHUNK = 1 << 20


def moments(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation, summed in double about the first weight, as float32 scalars."""
    flat = weight.detach().reshape(-1)
    pivot = flat[0].double()
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    squares = torch.zeros_like(total)
    for chunk in torch.split(flat, CHUNK):
        centred = chunk.double() - pivot
        total += centred.sum()
        squares += centred.square().sum()
    count = flat.numel()
    variance = (squares - total * total / count).clamp_min(0.0) / (count - 1)
    return (pivot + total / count).float(), variance.sqrt().float()


def cuts(shift: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    """Rising, for each threshold between levels: the largest float32 weight of the lower level."""
    thresholds = (levels[1:].double() + levels[:-1].double()) / 2
    boundaries = shift.double() + (scale.double() + EPSILON) * thresholds
    rounded = boundaries.float()
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > boundaries, below, rounded)


def codes_of(weight: Tensor, shift: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    """Level numbers, int32, of the weight's shape: how many cuts each weight exceeds."""
    return torch.bucketize(weight.detach().contiguous().float(), cuts(shift, scale, levels), out_int32=True)


def values_of(shift: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    """The float32 weight that each code stands for."""
    return shift + scale * levels


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes (..., columns) into uint8 (..., row_bytes), the first code in the lowest bits."""
    columns, per_byte = codes.shape[-1], 8 // bits
    width = row_bytes(columns, bits)
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, width * per_byte - columns))
    groups = padded.view(*codes.shape[:-1], width, per_byte)
    packed = torch.zeros(groups.shape[:-1], dtype=torch.uint8, device=codes.device)
    for place in range(per_byte):
        packed |= groups[..., place] << (place * bits)
    return packed


def unpack_rows(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes (..., columns) as uint8 of packed rows (..., row_bytes)."""
    places = [packed >> (place * bits) & ((1 << bits) - 1) for place in range(8 // bits)]
    return torch.stack(places, dim=-1).flatten(-2)[..., :columns]


def decode_rows(packed: Tensor, values: Tensor, bits: int, columns: int) -> Tensor:
    """The float32 weights (..., columns) of packed rows, `values` being the weight of each code."""
    return values[unpack_rows(packed, bits, columns).int()]


def row_chunks(rows: int, columns: int) -> list[slice]:
    """Slices of rows whose decoded weights stay small, so that a whole dense weight is never made."""
    step = max(1, CHUNK // max(1, columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
