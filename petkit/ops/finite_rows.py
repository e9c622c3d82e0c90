"""`finite_rows`: whether models hold only finite numbers, in one read."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops import _library, _merge


def finite_rows(models: Tensor) -> Tensor:
    """Tell which slices of models hold only finite numbers, so that one with nan can be named.

    Args:
        models: (n, count) float32, bfloat16 or float16, a row for each model.

    Returns:
        bool (n,): true where no number of the row is nan or infinite; so of an empty row.

    Raises:
        InputError: another shape or dtype.
    """
    _merge.check_models(models)
    found: Tensor = torch.ops.petkit.finite_rows(models)
    return found


def _default(models: Tensor) -> Tensor:
    return torch.stack([row.isfinite().all() for row in models])


def _fake(models: Tensor) -> Tensor:
    return models.new_empty((models.shape[0],), dtype=torch.bool)


_library.define("finite_rows(Tensor models) -> Tensor", _default, _fake)
