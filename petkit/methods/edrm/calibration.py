"""Thresholds fitted to labelled questions, and what each way of routing would have cost and answered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.methods.edrm.algorithm import (
    MODES,
    DatasetPoint,
    Descriptors,
    Mode,
    Thresholds,
    dataset_point,
    mode_indices,
    route,
)

# The paper's weight of a decade of tokens against the share of right answers.
TOKEN_WEIGHT = 0.07
# Thresholds are tried at these shares of the calibration questions.
QUANTILES = tuple(step / 10 for step in range(1, 10))
GLOBAL_QUESTIONS = 50
ZERO_SHOT = Thresholds()


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What every mode made of some questions.

    Args:
        points: descriptors of the probes, (questions,).
        correct: (questions, 3) scores from 0 to 1, in the order of `MODES`.
        tokens: (questions, 3) tokens that each mode wrote by itself.
        probe: (questions,) tokens of the probe.
        datasets: name of each question's data set.
        trajectories: the probes' entropies; needed for mean trajectories alone.
    """

    points: Descriptors
    correct: Tensor
    tokens: Tensor
    probe: Tensor
    datasets: tuple[str, ...]
    trajectories: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.datasets)
        shapes = [tuple(x.shape) for x in (*self.points, self.probe, self.correct, self.tokens)]
        if shapes != [(count,)] * 4 + [(count, len(MODES))] * 2:
            raise InputError(f"outcomes of {count} questions must have three modes each, got shapes {shapes}")

    def __len__(self) -> int:
        return len(self.datasets)

    def select(self, rows: Sequence[int]) -> Outcomes:
        """Some of the questions, in this order; one may come more than once."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        points = Descriptors(*(x[index] for x in self.points))
        names = tuple(self.datasets[row] for row in rows)
        kept = tuple(self.trajectories[row] for row in rows) if self.trajectories else ()
        return Outcomes(points, self.correct[index], self.tokens[index], self.probe[index], names, kept)

    def rows_of(self, dataset: str) -> list[int]:
        """Where a data set's questions are."""
        return [row for row, name in enumerate(self.datasets) if name == dataset]

    def routed_tokens(self) -> Tensor:
        """Tokens (questions, 3) of each mode after a probe, which the standard mode goes on with."""
        after = self.tokens + self.probe[:, None]
        after[:, MODES.index("standard")] = self.tokens[:, MODES.index("standard")]
        return after


@dataclass(frozen=True)
class Routed:
    """By what questions are routed, and what that costs.

    Args:
        points: one for each question.
        tokens: (questions, 3) of each mode, with what was spent on choosing.
        lengths: (questions,) tokens that the points are of.
    """

    points: Descriptors
    tokens: Tensor
    lengths: Tensor

    def route(self, thresholds: Thresholds = ZERO_SHOT) -> list[Mode]:
        """What the rule chooses for each question."""
        return route(self.points, thresholds, self.lengths)


@dataclass(frozen=True)
class Objective:
    """What good thresholds are.

    Args:
        kind: utility is accuracy - weight log10(tokens); accuracy, the most of it within `limit` tokens a
            question; tokens, the fewest with an accuracy of at least `limit`.
        limit: for the last two.
        weight: for the first.
    """

    kind: Literal["utility", "accuracy", "tokens"] = "utility"
    limit: float = 0.0
    weight: float = TOKEN_WEIGHT

    def key(self, correct: Tensor, tokens: Tensor) -> tuple[float, ...]:
        """What is to be maximised, from scores and tokens of the questions; a broken limit comes last."""
        accuracy, mean = correct.mean().item(), tokens.mean().item()
        if self.kind == "utility":
            return (utility(correct, tokens, self.weight).mean().item(), -mean)
        if self.kind == "accuracy":
            return (1.0, accuracy, -mean) if mean <= self.limit else (0.0, -mean, accuracy)
        return (1.0, -mean, accuracy) if accuracy >= self.limit else (0.0, accuracy, -mean)

    def reached(self, correct: Tensor, tokens: Tensor) -> Reached:
        """What scores and tokens of the questions come to."""
        return Reached(self, correct.mean().item(), tokens.mean().item())


@dataclass(frozen=True)
class Reached:
    """What came of an objective on some questions."""

    objective: Objective
    accuracy: float
    tokens: float
    """A question, on average."""

    @property
    def is_met(self) -> bool:
        """Whether the limit holds."""
        limit = self.objective.limit
        return {
            "utility": True,
            "accuracy": self.tokens <= limit,
            "tokens": self.accuracy >= limit,
        }[self.objective.kind]

    @property
    def asked(self) -> str:
        """What was asked for, in one line."""
        limit = self.objective.limit
        return {
            "utility": f"most accuracy - {self.objective.weight:g} log10(tokens)",
            "accuracy": f"tokens a question <= {limit:g}",
            "tokens": f"accuracy >= {limit:g}",
        }[self.objective.kind]

    @property
    def value(self) -> str:
        """What that came to, with digits enough to be told from the limit."""
        return {
            "utility": f"accuracy {self.accuracy:.4g}, tokens a question {self.tokens:.4g}",
            "accuracy": f"{self.tokens:.6g}",
            "tokens": f"{self.accuracy:.6g}",
        }[self.objective.kind]

    @property
    def text(self) -> str:
        """Both."""
        return f"{self.asked}, reached {self.value}"


def utility(correct: Tensor, tokens: Tensor, weight: float = TOKEN_WEIGHT) -> Tensor:
    """Accuracy less the price of the tokens: correct - weight * log10(max(tokens, 1)), elementwise.

    Source:
        EDRM section 5; that k = 0.07 weighs tokens is one of two readings, the other is the rule's dead band.
    """
    return correct - weight * torch.log10(tokens.double().clamp(min=1))


def by_question(outcomes: Outcomes) -> Routed:
    """Every question by its own probe."""
    return Routed(outcomes.points, outcomes.routed_tokens().double(), outcomes.probe)


def by_dataset(
    outcomes: Outcomes,
    kind: DatasetPoint = "mean_trajectory",
    questions: int = GLOBAL_QUESTIONS,
    seed: int = 0,
) -> Routed:
    """Every data set as a whole, by one point for some of its questions.

    Args:
        outcomes: with their trajectories.
        kind: as for `dataset_point`.
        questions: probed in each data set.
        seed: of the choice of questions.

    Returns:
        The same point for all questions of a data set.

    Source:
        EDRM section 5, dataset-level routing from 50 unlabelled questions.
    """
    points = torch.zeros(len(outcomes), len(Descriptors._fields), dtype=torch.float64)
    tokens, after_probe = outcomes.tokens.double(), outcomes.routed_tokens().double()
    lengths = torch.zeros_like(outcomes.probe)
    for name in sorted(set(outcomes.datasets)):
        rows = outcomes.rows_of(name)
        probed = [rows[place] for place in probed_places(len(rows), questions, seed)]
        trajectories = [outcomes.trajectories[row] for row in probed]
        points[rows] = dataset_point(trajectories, kind).stack()
        lengths[rows] = max(map(len, trajectories))
        # The others pay for nothing but their answers.
        tokens[probed] = after_probe[probed]
    return Routed(Descriptors(*points.unbind(dim=1)), tokens, lengths)


def taken(outcomes: Outcomes, modes: Sequence[Mode], routed: Routed | None = None) -> tuple[Tensor, Tensor]:
    """Score and tokens, probes included, of each question when it is answered in the given mode."""
    index = torch.tensor([MODES.index(mode) for mode in modes], dtype=torch.int64)
    return _at(outcomes, routed or by_question(outcomes), index)


def _at(outcomes: Outcomes, routed: Routed, index: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(outcomes))
    return outcomes.correct[rows, index].double(), routed.tokens[rows, index].double()


def calibrate(
    outcomes: Outcomes,
    objective: Objective = Objective(),
    overload: Mode = "direct",
    routed: Routed | None = None,
) -> Thresholds:
    """Choose the rule's thresholds on a grid of the points' own quantiles.

    Args:
        outcomes: labelled questions, at least one.
        objective: what is maximised; of equals the first on the grid is taken.
        overload: the rule's fallback.
        routed: by what the questions are routed; None is each by its own probe.

    Returns:
        The thresholds. When a limit cannot be met, those that come nearest to it.

    Raises:
        InputError: there is no question.

    Source:
        EDRM section 5; the grid is reconstructed.
    """
    if not len(outcomes):
        raise InputError("thresholds need at least one labelled question, got none")
    routed = routed or by_question(outcomes)
    best, chosen = None, Thresholds(overload=overload)
    for total, band, smooth in itertools.product(*_grid(routed.points)):
        thresholds = Thresholds(total, band, smooth, overload)
        key = objective.key(*_at(outcomes, routed, mode_indices(routed.points, thresholds, routed.lengths)))
        if best is None or key > best:
            best, chosen = key, thresholds
    return chosen


def _grid(points: Descriptors) -> list[list[float]]:
    shares = torch.tensor(QUANTILES, dtype=torch.float64)
    columns = (points.cumulative, points.spearman.abs(), points.von_neumann)
    grid = [sorted(set(torch.quantile(column, shares).tolist())) for column in columns]
    # With the largest sum nothing is an overload, with 0 everything; no trend is beyond 1. So a router that
    # always answers in the standard or in the fallback's mode is on the grid too.
    grid[0] += [points.cumulative.max().item(), 0.0]
    grid[1].append(1.0)
    return grid


def leave_one_out(
    outcomes: Outcomes,
    objective: Objective = Objective(),
    overload: Mode = "direct",
    route_by: Callable[[Outcomes], Routed] = by_question,
) -> list[Mode]:
    """Route every data set with thresholds that were fitted to the others.

    Args:
        outcomes: labelled questions of at least two data sets.
        objective, overload: as for `calibrate`.
        route_by: `by_question` or `by_dataset`.

    Returns:
        A mode for each question.

    Raises:
        InputError: there is one data set alone.
    """
    names = sorted(set(outcomes.datasets))
    if len(names) < 2:
        raise InputError(f"leaving one data set out needs at least two, got {names}")
    modes: list[Mode] = ["standard"] * len(outcomes)
    for name in names:
        held_out = outcomes.rows_of(name)
        others = outcomes.select([row for row in range(len(outcomes)) if outcomes.datasets[row] != name])
        thresholds = calibrate(others, objective, overload, route_by(others))
        chosen = route_by(outcomes.select(held_out)).route(thresholds)
        for row, mode in zip(held_out, chosen, strict=True):
            modes[row] = mode
    return modes


def probed_places(count: int, questions: int = GLOBAL_QUESTIONS, seed: int = 0) -> list[int]:
    """Which of a data set's questions are probed to route them all.

    Args:
        count: of the data set.
        questions: to probe at most.
        seed: of the choice.

    Returns:
        Distinct places from 0.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[:questions])


def oracle(outcomes: Outcomes) -> list[Mode]:
    """The cheapest mode among the most correct ones: what no router can surpass."""
    most = outcomes.correct == outcomes.correct.max(dim=1, keepdim=True).values
    cheapest = outcomes.tokens.double().masked_fill(~most, torch.inf).argmin(dim=1)
    return [MODES[index] for index in cheapest.tolist()]


@dataclass(frozen=True)
class Bootstrap:
    """A mean over questions with its 95 % percentile interval."""

    mean: float
    low: float
    high: float


def bootstrap_saving(spent: Tensor, reference: Tensor, seed: int = 0, draws: int = 2000) -> Bootstrap:
    """The share of tokens that is saved, with numerator and denominator of the same resampled questions.

    Args:
        spent: (questions,) tokens of a policy, at least one question.
        reference: (questions,) tokens of what it is compared with, their sum above 0.
        seed, draws: as for `bootstrap`.

    Returns:
        1 - sum(spent) / sum(reference), with its interval.

    Raises:
        InputError: there is no value.
    """
    rows = _resampled(len(spent), seed, draws)
    shares = 1 - spent.double()[rows].sum(dim=1) / reference.double()[rows].sum(dim=1).clamp(min=1)
    low, high = torch.quantile(shares, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    whole = 1 - spent.double().sum().item() / max(reference.double().sum().item(), 1.0)
    return Bootstrap(whole, low, high)


def _resampled(count: int, seed: int, draws: int) -> Tensor:
    if not count:
        raise InputError("a bootstrap needs at least one value, got none")
    return torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))


def bootstrap(values: Tensor, seed: int = 0, draws: int = 2000) -> Bootstrap:
    """Resample questions with replacement; paired, when `values` are differences.

    Args:
        values: (questions,), at least one.
        seed: of the draws.
        draws: how many.

    Returns:
        Mean, 2.5th and 97.5th percentile of the resampled means.

    Raises:
        InputError: there is no value.

    Source:
        Efron's percentile bootstrap.
    """
    means = values.double()[_resampled(len(values), seed, draws)].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Bootstrap(values.double().mean().item(), low, high)
