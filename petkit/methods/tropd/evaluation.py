"""How well a student answers, and how far it is from its teacher along its answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from petkit.methods.tropd.prompts import PromptSet
from petkit.methods.tropd.step import DistillationStep, Rollout
from petkit.rollout.sampling import sample
from petkit.training.evaluate import wilson_interval


@dataclass(frozen=True)
class RewardEvaluation:
    """Of greedy answers to prompts with known answers."""

    reward: float
    """Part of the answers that are right."""

    interval: tuple[float, float]
    """95 % Wilson interval of it."""

    forward_kl: float | None
    """Mean over the answers' tokens of KL(teacher || student) over all tokens, in nats."""

    reverse_kl: float | None
    """Likewise of KL(student || teacher)."""

    n: int
    """Answers."""

    tokens: int
    """Of all answers."""

    seconds: float

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
        """JSON-ready values."""
        return {
            "reward": self.reward,
            "interval": list(self.interval),
            "forward_kl": self.forward_kl,
            "reverse_kl": self.reverse_kl,
            "n": self.n,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.seconds,
        }


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
    model, settings = step.head.model, step.config.sampling
    was_training = model.training
    model.eval()
    right, tokens = 0.0, 0
    sums = [0.0, 0.0]
    try:
        for start in range(0, len(prompts), settings.batch_size):
            chosen = prompts.prompts[start : start + settings.batch_size]
            answers = sample(
                model,
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
            right += sum(reward or 0.0 for reward in step.rewards(rollout))
            sequences = step.pack(rollout)
            tokens += int(sequences.mask.sum())
            if not step.teachers.are_here:
                continue
            found = step.teachers.divergence(
                step.head,
                step.head.states(sequences),
                sequences,
                [prompt.question.dataset for prompt in chosen],
                0.0,
                settings.temperature,
            )
            sums[0] += float(found.forward_kl.double().sum())
            sums[1] += float(found.reverse_kl.double().sum())
    finally:
        model.train(was_training)
    n = len(prompts)
    return RewardEvaluation(
        right / n,
        wilson_interval(round(right), n),
        sums[0] / tokens if step.teachers.are_here else None,
        sums[1] / tokens if step.teachers.are_here else None,
        n,
        tokens,
        time.perf_counter() - started,
    )
