"""Thresholds fitted to labelled questions, and what each way of routing would have cost and answered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.methods.edrm.algorithm import MODES, Descriptors, Mode, Thresholds, mode_indices, route

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
    """

    points: Descriptors
    correct: Tensor
    tokens: Tensor
    probe: Tensor
    datasets: tuple[str, ...]

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
        return Outcomes(points, self.correct[index], self.tokens[index], self.probe[index], names)

    def rows_of(self, dataset: str) -> list[int]:
        """Where a data set's questions are."""
        return [row for row, name in enumerate(self.datasets) if name == dataset]

    def routed_tokens(self) -> Tensor:
        """Tokens (questions, 3) of each mode after a probe, which the standard mode goes on with."""
        after = self.tokens + self.probe[:, None]
        after[:, MODES.index("standard")] = self.tokens[:, MODES.index("standard")]
        return after


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

    def is_met(self, correct: Tensor, tokens: Tensor) -> bool:
        """Whether the limit holds on these questions."""
        if self.kind == "utility":
            return True
        return self.key(correct, tokens)[0] == 1.0


def utility(correct: Tensor, tokens: Tensor, weight: float = TOKEN_WEIGHT) -> Tensor:
    """Accuracy less the price of the tokens: correct - weight * log10(max(tokens, 1)), elementwise.

    Source:
        EDRM section 5; that k = 0.07 weighs tokens is one of two readings, the other is the rule's dead band.
    """
    return correct - weight * torch.log10(tokens.double().clamp(min=1))


def taken(outcomes: Outcomes, modes: Sequence[Mode]) -> tuple[Tensor, Tensor]:
    """Score and tokens, probe included, of each question when it is answered in the given mode."""
    return _at(outcomes, torch.tensor([MODES.index(mode) for mode in modes], dtype=torch.int64))


def _at(outcomes: Outcomes, index: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(outcomes))
    return outcomes.correct[rows, index].double(), outcomes.routed_tokens()[rows, index].double()


def calibrate(outcomes: Outcomes, objective: Objective = Objective()) -> Thresholds:
    """Choose the rule's thresholds on a grid of the questions' own quantiles.

    Args:
        outcomes: labelled questions, at least one.
        objective: what is maximised; of equals the first on the grid is taken.

    Returns:
        The thresholds. When a limit cannot be met, those that come nearest to it.

    Raises:
        InputError: there is no question.

    Source:
        EDRM section 5; the grid is reconstructed.
    """
    if not len(outcomes):
        raise InputError("thresholds need at least one labelled question, got none")
    best, chosen = None, Thresholds()
    for total, band, smooth in itertools.product(*_grid(outcomes.points)):
        thresholds = Thresholds(total, band, smooth)
        key = objective.key(*_at(outcomes, mode_indices(outcomes.points, thresholds)))
        if best is None or key > best:
            best, chosen = key, thresholds
    return chosen


def _grid(points: Descriptors) -> list[list[float]]:
    shares = torch.tensor(QUANTILES, dtype=torch.float64)
    columns = (points.cumulative, points.spearman.abs(), points.von_neumann)
    grid = [sorted(set(torch.quantile(column, shares).tolist())) for column in columns]
    # With the largest sum nothing is an overload.
    grid[0].append(points.cumulative.max().item())
    return grid


def leave_one_out(outcomes: Outcomes, objective: Objective = Objective()) -> list[Mode]:
    """Route every data set with thresholds that were fitted to the others.

    Args:
        outcomes: labelled questions of at least two data sets.
        objective: as for `calibrate`.

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
        others = [row for row in range(len(outcomes)) if outcomes.datasets[row] != name]
        thresholds = calibrate(outcomes.select(others), objective)
        for row, mode in zip(held_out, route(outcomes.select(held_out).points, thresholds), strict=True):
            modes[row] = mode
    return modes


def route_datasets(
    outcomes: Outcomes,
    thresholds: Thresholds = ZERO_SHOT,
    seed: int = 0,
    questions: int = GLOBAL_QUESTIONS,
) -> list[Mode]:
    """Route each data set as a whole, by the mean point of some unlabelled questions.

    Args:
        outcomes: of which only the points are looked at.
        thresholds: as for `route`.
        seed: of the choice of questions.
        questions: probed in each data set.

    Returns:
        A mode for each question.

    Source:
        EDRM section 5, dataset-level routing; the mean is taken over the points, not over the trajectories.
    """
    modes: list[Mode] = ["standard"] * len(outcomes)
    for name in sorted(set(outcomes.datasets)):
        rows = outcomes.rows_of(name)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        sample = outcomes.select([rows[place] for place in order[:questions]]).points
        (mode,) = route(Descriptors(*(x.mean(0, keepdim=True) for x in sample)), thresholds)
        for row in rows:
            modes[row] = mode
    return modes


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
    if not len(values):
        raise InputError("a bootstrap needs at least one value, got none")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values.double()[rows].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Bootstrap(values.double().mean().item(), low, high)


Policy = Callable[[Outcomes], list[Mode]]


def always(mode: Mode) -> Policy:
    """Answer every question in one mode."""
    return lambda outcomes: [mode] * len(outcomes)
