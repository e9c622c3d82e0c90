"""`merge_deltas`: a base and the trimmed, thinned and elected differences of models to it, in one pass."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library, _merge

Consensus = Literal["none", "sum", "count"]


class Terms(NamedTuple):
    """How the differences of each model count; float64 (n,) each, but for the keys."""

    weights: Tensor
    """Factors."""

    low: Tensor
    """Differences of a smaller magnitude are left out."""

    high: Tensor
    """Differences of a larger magnitude are left out."""

    keep: Tensor
    """Probability that a difference is kept; those that are, are divided by it."""

    keys: Tensor
    """int64 (n,): keys of the streams of random numbers."""


def merge_deltas(
    base: Tensor,
    models: Tensor,
    terms: Terms,
    *,
    start: int = 0,
    consensus: Consensus = "none",
    normalize: bool = False,
    factor: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Add what models differ from a base to it: task arithmetic, TIES, DARE, breadcrumbs and SCE.

    Args:
        base: (count,) of the models' dtype.
        models: (n, count) float32, bfloat16 or float16, a row for each model.
        terms: how each model's differences count.
        start: place of the first element in its tensor, for the random numbers.
        consensus: `sum` keeps differences of the sign of their weighted sum, `count` of the sign that more
            of them have; a tie elects plus. Zeros have no sign. `none` keeps all.
        normalize: divide by the sum of weights; with a consensus by that of the kept ones, at each place. A
            divisor below 1e-8 counts as 1.
        factor: of the sum of differences, lambda.
        dtype: of the result; None is that of the models.

    Returns:
        (count,): base + factor sum_i w_i d_i / divisor, d_i = (model_i - base) / keep_i where it is kept.
        Everything is float32, rounded once at the end.

    Raises:
        InputError: other shapes or dtypes, another consensus.

    Source:
        Ilharco et al. 2023; Yadav et al. 2023 (TIES); Yu et al. 2024 (DARE); Davari and Belilovsky 2024
        (breadcrumbs); Wan et al. 2025 (SCE).
    """
    _merge.check_models(models)
    count = len(models)
    if base.shape != models.shape[1:] or base.dtype != models.dtype:
        raise InputError(
            f"base must be {models.dtype} {tuple(models.shape[1:])}, got {base.dtype} {tuple(base.shape)}"
        )
    for name in ("weights", "low", "high", "keep"):
        _merge.check_vector(name, getattr(terms, name), count)
    if terms.keys.shape != (count,) or terms.keys.dtype != torch.int64:
        raise InputError(f"keys must be int64 ({count},), got {terms.keys.dtype} {tuple(terms.keys.shape)}")
    if consensus not in get_args(Consensus):
        raise InputError(f"consensus must be one of {', '.join(get_args(Consensus))}, got {consensus!r}")
    found: Tensor = torch.ops.petkit.merge_deltas(
        base, models, *terms, start, consensus, normalize, factor, _merge.result_dtype(dtype, models)
    )
    return found


def _default(
    base: Tensor,
    models: Tensor,
    weights: Tensor,
    low: Tensor,
    high: Tensor,
    keep: Tensor,
    keys: Tensor,
    start: int,
    consensus: str,
    normalize: bool,
    factor: float,
    dtype: torch.dtype,
) -> Tensor:
    origin = base.float()
    terms = Terms(weights, low, high, keep, keys)
    deltas = [_kept(row.float() - origin, terms, i, start) for i, row in enumerate(models)]
    weighted = torch.stack([delta * float(weight) for delta, weight in zip(deltas, weights, strict=True)])
    divisor = weighted.new_tensor(float(weights.sum()))
    if consensus != "none":
        votes = weighted if consensus == "sum" else weighted.sign()
        elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
        agreeing = weighted.sign() == elected
        weighted = weighted * agreeing
        divisor = (weights.float()[:, None] * agreeing).sum(0)
    total = weighted.sum(0)
    if normalize:
        total = total / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return (origin + factor * total).to(dtype)


def _kept(delta: Tensor, terms: Terms, i: int, start: int) -> Tensor:
    size = delta.abs()
    # Written so that nan is kept, and seen in the result.
    out = (size < float(terms.low[i])) | (size > float(terms.high[i]))
    share = float(terms.keep[i])
    if share < 1:
        out |= _merge.uniform(int(terms.keys[i]), start, len(delta)).to(delta.device) >= share
        delta = delta / share
    return delta.masked_fill(out, 0.0)


def _fake(base: Tensor, models: Tensor, *rest: object) -> Tensor:
    return models.new_empty((models.shape[1],), dtype=rest[-1])  # type: ignore[call-overload, no-any-return]


_library.define(
    "merge_deltas(Tensor base, Tensor models, Tensor weights, Tensor low, Tensor high, Tensor keep, "
    "Tensor keys, int start, str consensus, bool normalize, float factor, ScalarType dtype) -> Tensor",
    _default,
    _fake,
)
