"""`magnitude_counts`: a histogram of magnitudes from which a threshold is read exactly, without sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library, _merge

BINS = 1 << 16
# The upper half of a float32 without its sign.
LARGEST_HALF = 0x7FFF


def magnitude_counts(base: Tensor, models: Tensor, prefix: Tensor | None = None) -> Tensor:
    """Count the magnitudes of the differences of models to a base by their bits.

    Args:
        base: (count,) of the models' dtype.
        models: (n, count) float32, bfloat16 or float16.
        prefix: int64 (n,), of each model the upper half of the magnitudes that are counted by their lower
            half, 0 to 32767; None, and -1 of a model, counts all by their upper half.

    Returns:
        int64 (n, 65536): how many of |model_i - base|, as float32, have each half. Halves rise with the
        magnitude, nan come last.

    Raises:
        InputError: other shapes or dtypes, or a prefix out of range.

    Source:
        Selection by radix: two passes over 16 bits find the k-th magnitude of any number of them.
    """
    _merge.check_models(models)
    _merge.check_base(base, models)
    halves = torch.full((len(models),), -1, dtype=torch.int64) if prefix is None else prefix
    _merge.check_vector("prefix", halves, len(models), torch.int64)
    for half in halves.tolist():
        if not -1 <= half <= LARGEST_HALF:
            raise InputError(f"prefix must lie between -1 and {LARGEST_HALF}, got {half}")
    found: Tensor = torch.ops.petkit.magnitude_counts(base, models, halves)
    return found


def _default(base: Tensor, models: Tensor, prefix: Tensor) -> Tensor:
    rows = []
    for row, half in zip(models, prefix.tolist(), strict=True):
        bits = (row.float() - base.float()).abs().view(torch.int32)
        upper = bits >> 16
        chosen = upper if half < 0 else (bits & 0xFFFF)[upper == half]
        rows.append(torch.bincount(chosen, minlength=BINS))
    return torch.stack(rows)


def _fake(base: Tensor, models: Tensor, prefix: Tensor) -> Tensor:
    return models.new_empty((models.shape[0], BINS), dtype=torch.int64)


_library.define("magnitude_counts(Tensor base, Tensor models, Tensor prefix) -> Tensor", _default, _fake)
