"""`magnitudes_within`: the magnitudes of a narrow range, and how many lie around it, from one read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library, _merge


class Within(NamedTuple):
    """What `magnitudes_within` gives."""

    counts: Tensor
    """int64 (n, 4): how many magnitudes of each model are below `low`, equal to it, between the two, and
    equal to `high` where that is not `low`."""

    values: Tensor
    """float32: those between, by model and then by place."""


def magnitudes_within(base: Tensor, models: Tensor, low: Tensor, high: Tensor) -> Within:
    """Count the magnitudes of the differences of models to a base around a range, and give those inside.

    Args:
        base: (count,) of the models' dtype.
        models: (n, count) float32, bfloat16 or float16.
        low: float64 (n,), of each model's range, at least 0; rounded to float32.
        high: float64 (n,), at least `low`; may be infinite.

    Returns:
        Counts and values of |model_i - base|, as float32. The range's ends are counted and not given, so that
        numbers that are often the same take no memory there. nan are neither.

    Raises:
        InputError: other shapes or dtypes, or a range that is none.

    Source:
        Selection of the k-th by a sample (Floyd and Rivest 1975): a range that holds it is narrow.
    """
    _merge.check_models(models)
    _merge.check_base(base, models)
    _merge.check_vector("low", low, len(models))
    _merge.check_vector("high", high, len(models))
    for least, most in zip(low.tolist(), high.tolist(), strict=True):
        if not 0 <= least <= most:
            raise InputError(f"low and high must be 0 <= low <= high, got {least} and {most}")
    return Within(*torch.ops.petkit.magnitudes_within(base, models, low, high))


def _default(base: Tensor, models: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    counts, values = [], []
    for row, least, most in zip(models, low.float(), high.float(), strict=True):
        sizes = (row.float() - base.float()).abs()
        over = sizes > least
        inside = sizes[over & (sizes < most)]
        numbers = [(sizes < least).sum(), (sizes == least).sum(), (over & (sizes == most)).sum()]
        numbers.insert(2, numbers[0].new_tensor(len(inside)))
        counts.append(torch.stack(numbers))
        values.append(inside)
    return torch.stack(counts), torch.cat(values)


def _fake(base: Tensor, models: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    counts = models.new_empty((models.shape[0], 4), dtype=torch.int64)
    return counts, models.new_empty(total, dtype=torch.float32)


_library.define(
    "magnitudes_within(Tensor base, Tensor models, Tensor low, Tensor high) "
    "-> (Tensor counts, Tensor values)",
    _default,
    _fake,
)
