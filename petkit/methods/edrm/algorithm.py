"""Entropy trajectories as three numbers, and the rules that choose a decoding mode from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from petkit.errors import ConfigError, InputError

Mode = Literal["direct", "standard", "cot"]
Regime = Literal["convergent", "exploratory", "overload"]
DatasetPoint = Literal["mean_trajectory", "mean_point"]

MODES: tuple[Mode, ...] = get_args(Mode)
# Fewer entropies have neither a trend nor a roughness.
LEAST_TOKENS = 3
# What the von Neumann ratio of white noise is on average.
WHITE_NOISE = 2.0


class Descriptors(NamedTuple):
    """A point for each trajectory, float64 (batch,)."""

    cumulative: Tensor
    """Sum of the entropies, in nats: how uncertain the model is in all."""

    spearman: Tensor
    """Rank correlation of entropy with position, -1 to 1: whether uncertainty falls or rises."""

    von_neumann: Tensor
    """Squared steps over squared deviations: below 2 smooth, near 2 white noise, above 2 oscillating."""

    def stack(self) -> Tensor:
        """The points as (batch, 3)."""
        return torch.stack(tuple(self), dim=-1)


@dataclass(frozen=True)
class Decision:
    """A mode, and in one line why it was chosen."""

    mode: Mode
    reason: str


@dataclass(frozen=True)
class Thresholds:
    """Where the rule's inequalities lie; the defaults are the zero-shot ones for instruction-tuned models."""

    cumulative: float = 32.0
    """More nats than this are an overload; 10 for models that reason by themselves."""

    spearman: float = 0.07
    """Half the width of the band around 0 in which there is no trend."""

    von_neumann: float = WHITE_NOISE
    """Only a trajectory that is smoother than this converges."""

    overload: Mode = "direct"
    """What an overload falls back to: the paper has a fallback, whether direct or standard is not known."""

    def __post_init__(self) -> None:
        if not (self.cumulative >= 0 and 0 <= self.spearman <= 1 and self.von_neumann >= 0):
            raise ConfigError(
                "thresholds must have cumulative and von_neumann of at least 0 and spearman between 0 and 1, "
                f"got {self}"
            )


def descriptors(
    entropies: Tensor | Sequence[Sequence[float]], lengths: Tensor | Sequence[int] | None = None
) -> Descriptors:
    """Reduce entropy trajectories to position, velocity and acceleration.

    Args:
        entropies: (batch, tokens) in nats, or rows of different lengths.
        lengths: (batch,) tokens that count in each row; None counts all.

    Returns:
        float64 descriptors. Fewer than 3 tokens have a sum, no trend (0) and the roughness of noise (2); so
        have, but for the sum, trajectories that do not change.

    Raises:
        InputError: an entropy that is negative or not finite, with its row, or lengths that do not fit.

    Source:
        EDRM (arXiv 2605.22873) section 3; the values of the degenerate cases are ours.
    """
    values, mask = _padded(entropies, lengths)
    _check_entropies(values, mask)
    count = mask.sum(dim=1)
    steps = torch.diff(values, dim=1) * mask[:, 1:]
    rough = (steps**2).sum(dim=1) / _squares(values, mask)
    changes = (count >= LEAST_TOKENS) & ((steps != 0).any(dim=1))
    positions = torch.arange(1, values.shape[1] + 1, dtype=torch.float64).expand_as(values)
    trend = _correlation(_ranks(values, mask), positions, mask)
    return Descriptors(
        (values * mask).sum(dim=1),
        torch.where(changes, trend, 0.0),
        torch.where(changes, rough, WHITE_NOISE),
    )


def dataset_point(trajectories: Sequence[Sequence[float]], kind: DatasetPoint) -> Descriptors:
    """One point for a whole data set.

    Args:
        trajectories: entropies of some of its questions, at least one.
        kind: mean_trajectory takes the mean entropy at every position (over those that are that long) and
            describes that; mean_point describes every trajectory and takes the mean.

    Returns:
        Descriptors (1,).

    Raises:
        InputError: there is no trajectory.

    Source:
        EDRM section 5, dataset-level routing; its figure of mean trajectories suggests the first reading.
    """
    if not trajectories:
        raise InputError("a data set needs at least one trajectory, got none")
    if kind == "mean_point":
        return Descriptors(*(x.mean(0, keepdim=True) for x in descriptors(trajectories)))
    _check_entropies(*_padded(trajectories, None))
    columns = [
        [row[place] for row in trajectories if place < len(row)]
        for place in range(max(map(len, trajectories)))
    ]
    # Exactly rounded sums: equal positions have equal means, so that rounding makes no trend of them.
    return descriptors([[math.fsum(column) / len(column) for column in columns]])


def route(
    points: Descriptors, thresholds: Thresholds = Thresholds(), lengths: Tensor | Sequence[int] | None = None
) -> list[Mode]:
    """Choose a mode for each trajectory.

    Args:
        points: as `descriptors` returns them.
        thresholds: where the inequalities, all strict, lie.
        lengths: (batch,) tokens of each trajectory, for `keeps_standard`; None takes all as long enough.

    Returns:
        the fallback in an overload, direct when uncertainty rises, cot when it falls smoothly, else standard;
        standard also for an answer that was over before it had a shape.

    Source:
        EDRM section 5; the rule is reconstructed from its ablations (a fallback to direct, the sum and the
        ratio all count), since the paper's own boundaries could not be read.
    """
    return [MODES[index] for index in mode_indices(points, thresholds, lengths).tolist()]


def keeps_standard(lengths: Tensor | Sequence[int]) -> Tensor:
    """Which standard answers are kept, whatever decides: those of fewer than 3 tokens.

    Args:
        lengths: (batch,) tokens whose entropies were looked at.

    Returns:
        bool (batch,). A probe has at least 3 tokens, so a shorter one is a whole answer: there is nothing to
        save by another mode, and no trend to choose one by.

    Source:
        EDRM section 2, in the case that an answer ends before it can be described.
    """
    return torch.as_tensor(lengths, dtype=torch.int64) < LEAST_TOKENS


def mode_indices(
    points: Descriptors, thresholds: Thresholds = Thresholds(), lengths: Tensor | Sequence[int] | None = None
) -> Tensor:
    """What `route` chooses, as positions (batch,) in `MODES`."""
    overload, falls, rises = _tests(points, thresholds)
    chosen = torch.full(overload.shape, MODES.index("standard"))
    chosen[rises] = MODES.index("direct")
    chosen[falls] = MODES.index("cot")
    chosen[overload] = MODES.index(thresholds.overload)
    if lengths is not None:
        chosen[keeps_standard(lengths)] = MODES.index("standard")
    return chosen


def regimes(points: Descriptors, thresholds: Thresholds = Thresholds()) -> list[Regime]:
    """Name the regime of each trajectory.

    Args:
        points: as `descriptors` returns them.
        thresholds: as for `route`.

    Returns:
        overload above the sum's threshold, convergent where entropy falls smoothly, else exploratory.

    Source:
        EDRM section 4.
    """
    overload, falls, _ = _tests(points, thresholds)
    pairs = zip(overload.tolist(), falls.tolist(), strict=True)
    return ["overload" if much else "convergent" if fall else "exploratory" for much, fall in pairs]


def explain(point: tuple[float, float, float], thresholds: Thresholds = Thresholds()) -> str:
    """Say in one line which inequality decided.

    Args:
        point: cumulative, spearman and von_neumann of one trajectory.
        thresholds: as for `route`.

    Returns:
        The reason, with the numbers.
    """
    total, trend, rough = point
    limit, band, smooth = thresholds.cumulative, thresholds.spearman, thresholds.von_neumann
    if total > limit:
        return f"cumulative {total:.4g} > {limit:g}: overload, falls back to {thresholds.overload}"
    if trend < -band and rough < smooth:
        return (
            f"spearman {trend:.3f} < {-band:g} and von Neumann {rough:.3f} < {smooth:g}: converges, reason on"
        )
    if trend > band:
        return f"spearman {trend:.3f} > {band:g}: uncertainty rises, answer directly"
    if trend < -band:
        fell = f"spearman {trend:.3f} < {-band:g}"
        return f"{fell}, but von Neumann {rough:.3f} >= {smooth:g}: too rough, finish the probe"
    return f"spearman {trend:.3f} within {band:g} of 0: no trend, finish the probe"


def token_signature(probabilities: Tensor | Sequence[Sequence[float]]) -> list[Mode]:
    """Route by the trend of the drawn tokens' probabilities: the baseline that EDRM compares itself with.

    Args:
        probabilities: (batch, tokens) of the tokens that were drawn, or rows of different lengths.

    Returns:
        cot where probabilities rise, else direct.

    Source:
        Token Signature (arXiv 2506.06008): Spearman correlation of the early curve.
    """
    trend = descriptors(probabilities).spearman
    return ["cot" if rises else "direct" for rises in (trend > 0).tolist()]


def _tests(points: Descriptors, thresholds: Thresholds) -> tuple[Tensor, Tensor, Tensor]:
    overload = points.cumulative > thresholds.cumulative
    smooth = points.von_neumann < thresholds.von_neumann
    return overload, (points.spearman < -thresholds.spearman) & smooth, points.spearman > thresholds.spearman


def _padded(
    entropies: Tensor | Sequence[Sequence[float]], lengths: Tensor | Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Values (batch, tokens) in float64, and which of them count."""
    if isinstance(entropies, Tensor):
        if entropies.dim() != 2:
            raise InputError(f"entropies must be (batch, tokens), got {tuple(entropies.shape)}")
        values = entropies.detach().double().cpu()
        own = [values.shape[1]] * len(values)
    else:
        own = [len(row) for row in entropies]
        values = torch.zeros(len(own), max(own, default=0), dtype=torch.float64)
        for index, row in enumerate(entropies):
            values[index, : len(row)] = torch.as_tensor(row, dtype=torch.float64)
    wanted = own if lengths is None else torch.as_tensor(lengths).tolist()
    if len(wanted) != len(own) or not all(0 <= n <= most for n, most in zip(wanted, own, strict=True)):
        raise InputError(
            f"lengths must lie between 0 and {max(own, default=0)} for {len(own)} rows, got {wanted}"
        )
    mask = torch.arange(values.shape[1]) < torch.tensor(wanted, dtype=torch.int64)[:, None]
    # What lies behind a row's end may be anything, even nan.
    return values.masked_fill(~mask, 0.0), mask


def _check_entropies(values: Tensor, mask: Tensor) -> None:
    wrong = mask & ~((values >= 0) & values.isfinite())
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise InputError(
            f"entropies must be finite and at least 0, got {values[row, column].item()} in row {row} "
            f"at token {column}"
        )


def _squares(values: Tensor, mask: Tensor) -> Tensor:
    centred = (values - (values * mask).sum(1, True) / mask.sum(1, True).clamp(min=1)) * mask
    return (centred**2).sum(dim=1)


def _ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Ranks from 1 on within each row; equal values share the mean of theirs."""
    order = values.masked_fill(~mask, torch.inf).sort(dim=1).values
    before = torch.searchsorted(order, values.contiguous())
    through = torch.searchsorted(order, values.contiguous(), right=True)
    return (before + through + 1).double() / 2


def _correlation(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(1, True).clamp(min=1)
    a, b = ((x - (x * mask).sum(1, True) / count) * mask for x in (a, b))
    return (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt()
