"""One step of on-policy distillation: the student writes, the teacher judges, the objective compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from petkit.losses.top_k import top_k_terms
from petkit.methods.tropd.algorithm import importance_weights, prefix_length, rewards
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.objectives import Tokens, draw_trust, objective_sum
from petkit.methods.tropd.prompts import Prompt
from petkit.methods.tropd.served_student import ServedStudent, sampled_log_probs
from petkit.methods.tropd.teachers import CachedTeacher, Teachers
from petkit.ops.divergence import Divergence
from petkit.rollout.own_reward import Judge, by_answers
from petkit.rollout.sampling import Completion, context_length, sample
from petkit.rollout.scoring import Head, Sequences, TeacherScores, pack, student_log_probs
from petkit.rollout.stops import Stops
from petkit.training.evaluate import StepOutput
from petkit.training.seeds import derive, stream
from petkit.training.sharding import Placement, Together

# Means that metrics.jsonl has of every step; those that a run has no numbers for are left out.
MEASURES = (
    "reward",
    "unguided_reward",
    "outlier_ratio",
    "trusted",
    "reverse_kl",
    "forward_kl",
    "entropy",
    "teacher_entropy",
    "prefix_length",
    "response_length",
    "finished",
)
# Likewise of steps whose responses a server wrote.
DRIFTS = ("server_drift", "server_drift_max")

# Of the responses' tokens and of further ones, and entropies.
LogProbs = tuple[Tensor, Tensor | None, Tensor]


@dataclass(frozen=True)
class Writer:
    """How ids become texts again."""

    padding: int
    decode: Callable[[Sequence[int]], str]
    stops: Stops | None


@dataclass(frozen=True)
class Rollout:
    """Responses to prompts, one behind the other."""

    prompts: Sequence[Prompt]
    completions: Sequence[Completion]


class DistillationStep:
    """A step function for `fit`.

    Args:
        config: the recipe.
        head: of the student.
        teachers: of the prompts.
        writer: for prompts and responses.
        total_steps: optimiser steps of the whole training.
        ends: ids that end a text.
        served: writes the responses, where that is not the student here.
        judge: of the responses.
    """

    def __init__(
        self,
        config: DistillConfig,
        head: Head,
        teachers: Teachers,
        writer: Writer,
        total_steps: int,
        ends: Sequence[int] = (),
        served: ServedStudent | None = None,
        judge: Judge = by_answers,
    ) -> None:
        self.config, self.head, self.teachers, self.writer = config, head, teachers, writer
        self.served, self.judge = served, judge
        self.placement: Placement = Together()
        self.total_steps, self.ends = total_steps, frozenset(ends)
        self.step = 0

    @property
    def student(self) -> str:
        """What messages call it."""
        return f"the student {self.config.student.model.name}"

    def of(self, model: nn.Module) -> DistillationStep:
        """The same for another model in the student's place, such as its reloaded artifact."""
        found = copy(self)
        found.head, found.placement, found.served = Head(model, self.head.vocab), Together(), None
        return found

    def placed(self, placement: Placement) -> DistillationStep:
        """The same for a student whose weights were put elsewhere, and whose head was proven before."""
        found = copy(self)
        found.placement = placement
        return found

    def begin(self, step: int) -> None:
        """Take note of the optimiser step that comes: draws and schedules are functions of it."""
        self.step = step
        if self.served is not None:
            self.served.begin(step, self.head.model, self.placement)

    def __call__(self, model: nn.Module, batch: Sequence[tuple[int, Prompt]]) -> StepOutput:
        """Sample responses to prompts and sum the objective over their tokens."""
        generates = self.teachers.cached is None and self.served is None
        weights = self.placement.whole(model) if generates else nullcontext(model)
        with weights as whole, self.placement.together():
            rollout = self.roll_out(whole, batch)
        sequences = self.pack(rollout)
        tokens, scores = self.compare(sequences, rollout, batch[0][0])
        sampled = sampled_log_probs(rollout.completions, sequences)
        if sampled is not None:
            cap = self.config.rollout.importance_cap
            tokens = replace(tokens, importance=importance_weights(tokens.student_log_probs, sampled, cap))
        loss = objective_sum(tokens, self.config.objective, self.step / self.total_steps)
        count = int(tokens.mask.sum())
        measures = self._measures(tokens, scores, rollout)
        if sampled is not None:
            measures |= _drift((tokens.student_log_probs.detach() - sampled)[tokens.own])
        return StepOutput(loss, count, measures=measures)

    def roll_out(self, model: nn.Module, batch: Sequence[tuple[int, Prompt]]) -> Rollout:
        """Let the student answer, behind what the teacher gives; or take what a cache holds."""
        cached = self.teachers.cached
        if cached is not None:
            return self._taken(cached, batch)
        samples = self.config.samples
        rows = [(number, prompt, draw) for number, prompt in batch for draw in range(samples)]
        prompts = [prompt for _, prompt, _ in rows]
        seeds = [derive(self.config.seed, "sampling", self.step, number, draw) for number, _, draw in rows]
        beginnings = self._beginnings(batch)
        prefixes = [beginnings[number] for number, _, _ in rows] if beginnings else None
        ids = [prompt.ids for prompt in prompts]
        if self.served is not None:
            return Rollout(prompts, self.served.draw(ids, seeds, prefixes))
        found = sample(
            model,
            ids,
            seeds,
            self.config.sampling,
            self.writer.padding,
            self.writer.stops,
            prefixes=prefixes,
            vocab=self.head.vocab,
            name=self.student,
        )
        return Rollout(prompts, found)

    def _taken(self, cached: CachedTeacher, batch: Sequence[tuple[int, Prompt]]) -> Rollout:
        """Responses of a cache: those of a prompt in turn, from one step to the next."""
        samples = self.config.samples
        prompts = [prompt for _, prompt in batch for _ in range(samples)]
        found = [
            cached.completion(number, self.step * samples + draw)
            for number, _ in batch
            for draw in range(samples)
        ]
        return Rollout(prompts, found)

    def pack(self, rollout: Rollout) -> Sequences:
        """Put responses behind their prompts, as one batch."""
        return pack(
            [one.prompt for one in rollout.completions],
            [one.tokens for one in rollout.completions],
            [one.prefix for one in rollout.completions],
            self.writer.padding,
            next(self.head.model.parameters()).device,
        )

    def compare(self, sequences: Sequences, rollout: Rollout, number: int) -> tuple[Tokens, TeacherScores]:
        """What both sides say of the responses.

        Args:
            sequences: the batch.
            rollout: that it was made of.
            number: of its first prompt, for the draws.
        """
        config, objective = self.config, self.config.objective
        datasets = [prompt.question.dataset for prompt in rollout.prompts]
        temperature = config.sampling.temperature
        with self.placement.together():
            scores = self.teachers.scores(sequences, datasets, self._top_k, temperature)
        student = self._divergence if objective.kind == "gkd" else self._log_probs
        (own, top, entropy), divergence = self.placement.through(
            lambda: student(sequences, datasets, scores.top_ids)
        )
        generator = stream(config.seed, "trust", self.step, number)
        tokens = Tokens(
            student_log_probs=own,
            teacher_log_probs=scores.log_probs,
            mask=sequences.mask,
            prefix_mask=sequences.prefix_mask,
            student_entropy=entropy,
            teacher_entropy=scores.entropy,
            student_top_log_probs=top,
            top_log_probs=scores.top_log_probs,
            trust=draw_trust(own, scores.log_probs, objective, generator),
            divergence=None if divergence is None else divergence.loss,
            forward_kl=None if divergence is None else divergence.forward_kl,
        )
        return tokens, scores

    @property
    def _top_k(self) -> int:
        """How many of the teacher's likeliest tokens are asked for: what is learnt from, or else recorded."""
        objective = self.config.objective
        # The divergence of gkd is over all tokens, and so is what it records.
        if objective.kind == "gkd":
            return 0
        return objective.teacher_tokens or self.teachers.recorded(self.head.vocab)

    def _log_probs(
        self, sequences: Sequences, datasets: Sequence[str], top_ids: Tensor | None
    ) -> tuple[LogProbs, None]:
        """What objectives over the sampled tokens learn from."""
        return student_log_probs(self.head, sequences, top_ids, self.config.sampling.temperature), None

    def _divergence(
        self, sequences: Sequences, datasets: Sequence[str], top_ids: Tensor | None
    ) -> tuple[LogProbs, Divergence]:
        """Divergences over all tokens, and the same log-probabilities for the record, from one pass."""
        states, temperature = self.head.states(sequences), self.config.sampling.temperature
        with torch.no_grad():
            sampled = student_log_probs(self.head, sequences, top_ids, temperature, states.detach())
        beta = self.config.objective.jsd_beta
        found = self.teachers.divergence(self.head, states, sequences, datasets, beta, temperature)
        return sampled, found

    def _beginnings(self, batch: Sequence[tuple[int, Prompt]]) -> dict[int, list[int]]:
        """What the teacher gives of each prompt's response; empty where it gives nothing."""
        config = self.config
        longest = 0
        if config.guidance.responses == "live":
            steps = config.guidance.steps or self.total_steps
            longest = prefix_length(self.step, steps, config.sampling.max_new_tokens)
        if longest == 0:
            return {}
        lengths: dict[int, int] = {}
        for number, _ in batch:
            draw = stream(config.seed, "guidance", self.step, number)
            lengths[number] = int(torch.randint(longest + 1, (1,), generator=draw))
        wanted = [(number, prompt) for number, prompt in batch if lengths[number]]
        written = self._guides(wanted, max(lengths.values(), default=0))
        given: dict[int, list[int]] = {number: [] for number, _ in batch}
        for (number, prompt), response in zip(wanted, written, strict=True):
            given[number] = self._begun(prompt, response, lengths[number])
        return given

    def _guides(self, batch: Sequence[tuple[int, Prompt]], longest: int) -> list[Completion]:
        """Responses of the prompts' own teachers, the first tokens of them."""
        settings = self.config.sampling.model_copy(update={"max_new_tokens": longest})
        found: dict[int, Completion] = {}
        for dataset in dict.fromkeys(prompt.question.dataset for _, prompt in batch):
            own = [(number, prompt) for number, prompt in batch if prompt.question.dataset == dataset]
            names = ("guidance", "response", self.step)
            seeds = [derive(self.config.seed, *names, number) for number, _ in own]
            prompts = [prompt.ids for _, prompt in own]
            answers = self.teachers.of(dataset).write(prompts, seeds, settings, self.writer.stops)
            found |= {number: answer for (number, _), answer in zip(own, answers, strict=True)}
        return [found[number] for number, _ in batch]

    def _begun(self, prompt: Prompt, response: Completion, length: int) -> list[int]:
        """The first tokens of a teacher's response, without what ends it for either side."""
        kept = list(response.tokens[:-1] if response.finished else response.tokens)[:length]
        end = next((place for place, token in enumerate(kept) if token in self.ends), len(kept))
        # The student has to write a token at least, and to find room for it.
        room = self.config.sampling.max_new_tokens
        context = context_length(self.head.model)
        room = room if context is None else min(room, context - len(prompt.ids))
        return kept[: min(end, room - 1)]

    @torch.no_grad()
    def _measures(
        self, tokens: Tokens, scores: TeacherScores, rollout: Rollout
    ) -> dict[str, tuple[float, float]]:
        own, responses = tokens.own, len(rollout.completions)
        gain = rewards(tokens.student_log_probs, tokens.teacher_log_probs)
        # Where the teacher wrote everything, its tokens are what there is to measure.
        read = tokens.mask if self.teachers.write_all else own

        def mean(values: Tensor, kept: Tensor = read) -> tuple[float, float]:
            return float(values[kept].double().sum()), float(kept.sum())

        found = {
            "outlier_ratio": mean(1 - gain.clamp_max(0).exp(), own),
            "reverse_kl": mean(-gain, own),
            "entropy": mean(tokens.student_entropy),
            "prefix_length": (float(tokens.prefix_mask.sum()), responses),
            "response_length": (float(tokens.mask.sum()), responses),
            "finished": (float(sum(one.finished for one in rollout.completions)), responses),
        }
        if scores.entropy is not None:
            found["teacher_entropy"] = mean(scores.entropy)
        if tokens.trust is not None and self.config.objective.kind == "tropd":
            found["trusted"] = mean(tokens.trust)
        if tokens.forward_kl is not None:
            found["forward_kl"] = mean(tokens.forward_kl)
        elif tokens.student_top_log_probs is not None and tokens.top_log_probs is not None:
            found["forward_kl"] = mean(
                top_k_terms(tokens.student_top_log_probs, tokens.top_log_probs, "bucket")
            )
        pairs = zip(self.rewards(rollout), rollout.completions, strict=True)
        scored = [(reward, one.prefix) for reward, one in pairs if reward is not None]
        found["reward"] = _total([reward for reward, _ in scored])
        if self.config.guidance.responses == "live":
            # What a teacher began may hold its answer.
            found["unguided_reward"] = _total([reward for reward, prefix in scored if prefix == 0])
        return found

    def rewards(self, rollout: Rollout, source: str = "data.train") -> list[float | None]:
        """How good each response is, 0 to 1; None where its answer is not known."""
        questions = [prompt.question for prompt in rollout.prompts]
        return self.judge(questions, [self.text(one) for one in rollout.completions], source)

    def text(self, completion: Completion) -> str:
        """A response without its end."""
        text = self.writer.decode(completion.tokens)
        return self.writer.stops.cut(text) if self.writer.stops else text


def _total(values: Sequence[float]) -> tuple[float, float]:
    """A sum and its number of terms."""
    return sum(values), float(len(values))


def _drift(differences: Tensor) -> dict[str, tuple[float, float]]:
    """How far the server's log-probabilities of its tokens are from the student's."""
    sizes = differences.abs().double()
    if not len(sizes):
        return {}
    # Steps of several micro-batches or processes record the mean of their largest ones.
    values = (float(sizes.sum()), float(len(sizes))), (float(sizes.max()), 1.0)
    return dict(zip(DRIFTS, values, strict=True))
