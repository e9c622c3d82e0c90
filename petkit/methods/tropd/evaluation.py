"""How well a student answers, and how far it is from its teacher along its answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from petkit.methods.tropd.prompts import Prompt, PromptSet
from petkit.methods.tropd.step import DistillationStep, Rollout
from petkit.rollout.sampling import sample
from petkit.training.evaluate import wilson_interval


@dataclass(frozen=True)
class Measures:
    """Of greedy answers to prompts with known answers."""

    reward: float
    """Part of the answers that are right, or the mean of a reward from 0 to 1."""

    interval: tuple[float, float]
    """95 % Wilson interval of it: for a reward between 0 and 1 it is on the wide side."""

    forward_kl: float | None
    """Mean over the answers' tokens of KL(teacher || student) over all tokens, in nats."""

    reverse_kl: float | None
    """Likewise of KL(student || teacher)."""

    n: int
    """Answers."""

    tokens: int
    """Of all answers."""

    def payload(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "reward": self.reward,
            "interval": list(self.interval),
            "forward_kl": self.forward_kl,
            "reverse_kl": self.reverse_kl,
            "n": self.n,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class RewardEvaluation(Measures):
    """Of all answers, and of those to each data set."""

    seconds: float

    datasets: Mapping[str, Measures] = field(default_factory=dict)
    """By the name of the data set; empty where there is but one."""

    @property
    def score(self) -> float:
        """What model selection maximises."""
        return self.reward

    def record(self) -> dict[str, float]:
        """What metrics.jsonl keeps."""
        found = {"eval_reward": self.reward, "eval_response_length": self.tokens / self.n}
        if self.forward_kl is not None and self.reverse_kl is not None:
            found |= {"eval_forward_kl": self.forward_kl, "eval_reverse_kl": self.reverse_kl}
        return found

    def payload(self) -> dict[str, Any]:
        """JSON-ready values; `datasets` where the prompts are of several."""
        found = {**super().payload(), "tokens_per_second": self.tokens / self.seconds}
        if self.datasets:
            found["datasets"] = {name: one.payload() for name, one in self.datasets.items()}
        return found


@dataclass(frozen=True)
class _Answer:
    """What one answer counts."""

    reward: float
    tokens: int
    divergences: tuple[float, float] | None
    """Sums over its tokens, forward and reverse."""


@torch.no_grad()
def evaluate_student(step: DistillationStep, prompts: PromptSet) -> RewardEvaluation:
    """Let the student answer greedily, and judge the answers.

    Args:
        step: knows the student, its teachers and the recipe.
        prompts: with answers.

    Returns:
        The evaluation; without divergences where a teacher's whole distribution cannot be had.
    """
    started = time.perf_counter()
    model, together = step.head.model, step.config.sampling.batch_size
    was_training = model.training
    model.eval()
    answers: list[_Answer] = []
    try:
        for start in range(0, len(prompts), together):
            answers += _answers(step, prompts.prompts[start : start + together])
    finally:
        model.train(was_training)
    return _evaluation(answers, prompts.prompts, started)


def _answers(step: DistillationStep, chosen: Sequence[Prompt]) -> list[_Answer]:
    """Answer a few prompts together."""
    settings = step.config.sampling
    answers = sample(
        step.head.model,
        [prompt.ids for prompt in chosen],
        [0] * len(chosen),
        settings,
        step.writer.padding,
        step.writer.stops,
        greedy=True,
        vocab=step.head.vocab,
        name=step.student,
    )
    rollout = Rollout(chosen, answers)
    rewards = [reward or 0.0 for reward in step.rewards(rollout, "data.validation")]
    if not step.teachers.are_here:
        pairs = zip(rewards, answers, strict=True)
        return [_Answer(reward, len(answer.tokens), None) for reward, answer in pairs]
    sequences = step.pack(rollout)
    found = step.teachers.divergence(
        step.head,
        step.head.states(sequences),
        sequences,
        [prompt.question.dataset for prompt in chosen],
        0.0,
        settings.temperature,
    )
    counts = sequences.mask.sum(-1).tolist()
    forward, reverse = (side.double().sum(-1).tolist() for side in (found.forward_kl, found.reverse_kl))
    return [_Answer(*one) for one in zip(rewards, counts, zip(forward, reverse, strict=True), strict=True)]


def _evaluation(answers: Sequence[_Answer], prompts: Sequence[Prompt], started: float) -> RewardEvaluation:
    seconds = time.perf_counter() - started
    by_name: dict[str, list[_Answer]] = {}
    for answer, prompt in zip(answers, prompts, strict=True):
        by_name.setdefault(prompt.question.dataset, []).append(answer)
    named = {name: _measures(by_name[name]) for name in sorted(by_name)} if len(by_name) > 1 else {}
    return RewardEvaluation(**vars(_measures(answers)), seconds=seconds, datasets=named)


def _measures(answers: Sequence[_Answer]) -> Measures:
    n, right = len(answers), sum(answer.reward for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    forward, reverse = (_mean([answer.divergences for answer in answers], side, tokens) for side in (0, 1))
    return Measures(right / n, wilson_interval(right, n), forward, reverse, n, tokens)


def _mean(divergences: Sequence[tuple[float, float] | None], side: int, tokens: int) -> float | None:
    known = [one[side] for one in divergences if one is not None]
    return sum(known) / tokens if len(known) == len(divergences) and tokens else None
