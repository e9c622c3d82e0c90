"""`merge_deltas`: a base and the trimmed, thinned and elected differences of models to it, in one pass."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library, _merge
from petkit.ops._checks import whole_number

Consensus = Literal["none", "sum", "count"]


class Terms(NamedTuple):
    """How the differences of each model count; float64 (n,) each, used as float32, but for the keys."""

    weights: Tensor
    """Factors."""

    low: Tensor
    """Differences of a smaller magnitude are left out."""

    high: Tensor
    """Differences of a larger magnitude are left out."""

    keep: Tensor
    """Probability that a difference is kept; those that are, are divided by it. 1 keeps all."""

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
        start: place of the first element in its tensor, for the random numbers: a tensor in slices gives
            what it gives as a whole.
        consensus: `sum` keeps differences of the sign of their weighted sum, `count` of the sign that more
            of them have; a tie elects plus. Zeros have no sign and never agree. `none` keeps all.
        normalize: divide by the sum of weights; with a consensus by that of the agreeing ones, at each place.
            A divisor below 1e-8 counts as 1.
        factor: of the sum of differences, lambda.
        dtype: of the result; None is that of the models.

    Returns:
        (count,): base + factor sum_i w_i d_i / divisor, d_i = (model_i - base) / keep_i where it is kept.
        Everything is float32, summed in the order of the rows, and rounded once at the end. A difference of
        nan is never left out.

    Raises:
        InputError: other shapes or dtypes, a probability out of range, another consensus, a negative start.

    Source:
        Ilharco et al. 2023; Yadav et al. 2023 (TIES); Yu et al. 2024 (DARE); Davari and Belilovsky 2024
        (breadcrumbs); Wan et al. 2025 (SCE).
    """
    _merge.check_models(models)
    _merge.check_base(base, models)
    for name in ("weights", "low", "high", "keep"):
        _merge.check_vector(name, getattr(terms, name), len(models))
    _merge.check_vector("keys", terms.keys, len(models), torch.int64)
    for share in terms.keep.tolist():
        if not 0 <= share <= 1:
            raise InputError(f"keep must lie between 0 and 1, got {share:g}")
    if consensus not in get_args(Consensus):
        raise InputError(f"consensus must be one of {', '.join(get_args(Consensus))}, got {consensus!r}")
    start = whole_number("start", start, 0)
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
    factors = _rounded(weights)
    numbers = zip(factors, _rounded(low), _rounded(high), _rounded(keep), keys.tolist(), strict=True)
    deltas = [
        weight * _kept(row.float() - origin, least, most, share, key, start)
        for row, (weight, least, most, share, key) in zip(models, numbers, strict=True)
    ]
    sign = _elected(deltas, consensus)
    total, divisor = torch.zeros_like(origin), torch.zeros_like(origin)
    # One sum after the other: torch.sum may add up in another order.
    for delta, weight in zip(deltas, factors, strict=True):
        # Of nan, every comparison is false.
        agrees = ~(delta * sign <= 0) if consensus != "none" else torch.ones_like(delta, dtype=torch.bool)
        total += delta.where(agrees, 0.0)
        divisor += agrees * weight
    if normalize:
        total /= divisor.masked_fill(divisor.abs() < 1e-8, 1.0)
    (scale,) = _rounded(torch.tensor([factor], dtype=torch.float64))
    return (origin + scale * total).to(dtype)


def _rounded(values: Tensor) -> list[float]:
    found: list[float] = values.float().tolist()
    return found


def _kept(delta: Tensor, low: float, high: float, keep: float, key: int, start: int) -> Tensor:
    size = delta.abs()
    out = (size < low) | (size > high)
    if keep < 1:
        out |= _merge.uniform(key, start, len(delta)).to(delta.device) >= keep
        delta = delta / keep
    return delta.masked_fill(out & ~size.isnan(), 0.0)


def _elected(deltas: list[Tensor], consensus: str) -> Tensor:
    """The sign that more of the differences have, or that their sum has; what it is with `none` is unused."""
    votes = torch.zeros_like(deltas[0])
    for delta in deltas:
        votes += delta.sign() if consensus == "count" else delta
    return torch.where(votes >= 0, 1.0, -1.0)


def _fake(base: Tensor, models: Tensor, *rest: object) -> Tensor:
    return models.new_empty((models.shape[1],), dtype=rest[-1])  # type: ignore[call-overload, no-any-return]


_library.define(
    "merge_deltas(Tensor base, Tensor models, Tensor weights, Tensor low, Tensor high, Tensor keep, "
    "Tensor keys, int start, str consensus, bool normalize, float factor, ScalarType dtype) -> Tensor",
    _default,
    _fake,
)
