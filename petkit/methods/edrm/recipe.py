"""Routing with a real model, top to bottom: probe a question, choose a mode, answer in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petkit.data.questions import Question
from petkit.data.tokens import padding_token
from petkit.errors import ConfigError, InputError
from petkit.methods.edrm.algorithm import (
    MODES,
    Decision,
    Mode,
    descriptors,
)
from petkit.methods.edrm.calibration import probed_places
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.outcome_file import OutcomeFile, outcome_key
from petkit.methods.edrm.rule import Rule
from petkit.models.config import ModelConfig
from petkit.models.loading import load_adapted, load_model
from petkit.rollout.entropy import Trajectory
from petkit.rollout.sampler import Written, generate
from petkit.rollout.verifiers import score

Progress = Callable[..., None]
# Batches that are measured before their outcomes go to the disk: standard answers that are already finished
# after their probe leave gaps, which several batches fill.
BATCHES_KEPT = 4
_NOTHING = Trajectory()


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model that answers, its tokenizer, and the hash that a router is bound to."""

    name: str
    model: nn.Module
    tokenizer: Any
    sha256: str


@dataclass(frozen=True)
class Answer:
    """What a question got: the mode, why, the text, and all tokens that were decoded for it."""

    mode: Mode
    reason: str
    text: str
    tokens: int


def _by_dataset(questions: Sequence[Question]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(question.dataset, []).append(row)
    return rows


@dataclass(frozen=True)
class Router:
    """Answers questions one way or another.

    Args:
        language_model: that writes.
        rule: prompts, lengths, and what decides.
        batch_size: questions decoded together.
    """

    language_model: LanguageModel
    rule: Rule
    batch_size: int = 16

    def __post_init__(self) -> None:
        has_template = getattr(self.language_model.tokenizer, "chat_template", None)
        if self.config.chat_template and not has_template:
            raise ConfigError(
                f"{self.language_model.name} has no chat template: set chat_template=false to put prompts as "
                "plain text"
            )

    @property
    def config(self) -> RouterConfig:
        """The rule's."""
        return self.rule.config

    def probe(self, questions: Sequence[Question], advance: Progress = lambda *_: None) -> list[Written]:
        """Decode the first tokens of each standard answer, with their entropies."""
        prompts = [self._prompt(question, "standard") for question in questions]
        return self._generate(prompts, self.config.probe_tokens, advance)

    def run(self, questions: Sequence[Question], advance: Progress = lambda *_: None) -> list[Answer]:
        """Probe, choose and answer.

        Args:
            questions: any number.
            advance: told how many questions are probed or answered.

        Returns:
            An answer for each question; its tokens include the probe's.

        Source:
            EDRM (arXiv 2605.22873) section 5: a standard answer goes on from its probe, which then costs
            nothing.
        """
        probed = self.probed_rows(questions)
        probes = self.probe([questions[row] for row in probed], advance)
        written = dict(zip(probed, probes, strict=True))
        decisions = self._decisions(questions, written)
        answers: dict[int, Answer] = {}
        for mode in MODES:
            for begun in (True, False):
                rows = [r for r, own in enumerate(decisions) if own.mode == mode and (r in written) == begun]
                reused = [written[row] for row in rows] if begun and mode == "standard" else None
                texts = self.answer([questions[row] for row in rows], mode, reused, advance)
                for row, (text, tokens) in zip(rows, texts, strict=True):
                    extra = written[row].cost if begun and mode != "standard" else 0
                    answers[row] = Answer(mode, decisions[row].reason, text, tokens + extra)
        return [answers[row] for row in range(len(questions))]

    def probed_rows(self, questions: Sequence[Question]) -> list[int]:
        """Which questions are probed: all, or of each data set as many as stand for it."""
        if self.config.level == "question":
            return list(range(len(questions)))
        sets = _by_dataset(questions)
        most = self.config.dataset_questions
        return sorted(rows[place] for rows in sets.values() for place in probed_places(len(rows), most))

    def _decisions(self, questions: Sequence[Question], probes: Mapping[int, Written]) -> list[Decision]:
        if self.config.level == "question":
            return self.rule.decide(descriptors([probes[row].trajectory.entropy for row in sorted(probes)]))
        chosen: dict[int, Decision] = {}
        for name, rows in _by_dataset(questions).items():
            own = [probes[row].trajectory.entropy for row in rows if row in probes]
            chosen |= dict.fromkeys(rows, self.rule.decide_dataset(name, own))
        return [chosen[row] for row in range(len(questions))]

    def answer(
        self,
        questions: Sequence[Question],
        mode: Mode,
        probes: Sequence[Written] | None = None,
        advance: Progress = lambda *_: None,
    ) -> list[tuple[str, int]]:
        """Answer in one mode.

        Args:
            questions: any number.
            mode: how.
            probes: beginnings of the standard answers, which are gone on with.
            advance: told how many are done.

        Returns:
            Pairs of text and tokens decoded, those of the beginning included.
        """
        started = list(probes or [Written((), _NOTHING, False)] * len(questions))
        open_rows = [row for row, written in enumerate(started) if not written.finished]
        prompts = [[*self._prompt(questions[row], mode), *started[row].tokens] for row in open_rows]
        left = self.config.max_new_tokens - (self.config.probe_tokens if probes else 0)
        advance(len(questions) - len(open_rows))
        # A limit below the probe's length keeps the probe.
        more = self._generate(prompts, left, advance, tracked=False) if left > 0 else []
        tails = dict(zip(open_rows, more, strict=bool(more)))
        found = []
        for row, begun in enumerate(started):
            tail = tails.get(row)
            tokens = [*begun.tokens, *(tail.tokens if tail else ())]
            text = self.language_model.tokenizer.decode(tokens, skip_special_tokens=True).strip()
            found.append((text, begun.cost + (tail.cost if tail else 0)))
        return found

    def key_of(self, question: Question) -> str:
        """Under what the outcome of a question is kept."""
        return outcome_key(question, self.config, self.language_model.sha256)

    def measure(
        self,
        questions: Sequence[Question],
        advance: Progress = lambda *_: None,
        kept: OutcomeFile | None = None,
    ) -> list[dict[str, Any]]:
        """Answer labelled questions in every mode, for calibration and comparison.

        Args:
            questions: with answers.
            advance: told how many are probed or answered; four steps for each that is not kept yet.
            kept: outcomes of earlier calls, which are not measured again; gets the others as they come.

        Returns:
            A record for each, as `evaluation.read_outcomes` takes them.

        Raises:
            InputError: a question without an answer, or outcomes that cannot be kept.
        """
        for question in questions:
            if question.answer is None:
                raise InputError(f"question {question.id} has no answer: this needs labelled questions")
        kept = kept or OutcomeFile(None)
        keys = [self.key_of(question) for question in questions]
        missing = {key: own for key, own in zip(keys, questions, strict=True) if key not in kept.records}
        # Prompts of like lengths go together, so that little is padded.
        order = sorted(missing.items(), key=lambda item: len(item[1].prompt()))
        for start in range(0, len(order), step := self.batch_size * BATCHES_KEPT):
            chunk = order[start : start + step]
            records = self._measure([question for _, question in chunk], advance)
            kept.append([(key, record) for (key, _), record in zip(chunk, records, strict=True)])
        return [kept.records[key] for key in keys]

    def _measure(self, questions: Sequence[Question], advance: Progress) -> list[dict[str, Any]]:
        probes = self.probe(questions, advance)
        records = [record_of(question, probe) for question, probe in zip(questions, probes, strict=True)]
        for mode in MODES:
            answers = self.answer(questions, mode, probes if mode == "standard" else None, advance)
            for question, record, (text, tokens) in zip(questions, records, answers, strict=True):
                result = {"correct": score(question, text), "tokens": tokens, "text": text}
                record.setdefault("modes", {})[mode] = result
        return records

    def _generate(
        self, prompts: Sequence[Sequence[int]], limit: int, advance: Progress, tracked: bool = True
    ) -> list[Written]:
        return generate(
            self.language_model.model,
            prompts,
            limit,
            padding=padding_token(self.language_model.tokenizer),
            batch_size=self.batch_size,
            tracked=tracked,
            advance=advance,
        )

    def _prompt(self, question: Question, mode: Mode) -> list[int]:
        text = getattr(self.config.prompts, mode).replace("{question}", question.prompt())
        tokenizer, system = self.language_model.tokenizer, self.config.prompts.system
        if not self.config.chat_template:
            return list(tokenizer(f"{system}\n{text}" if system else text)["input_ids"])
        messages = [{"role": "system", "content": system}] if system else []
        rendered = tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            # Known to the templates of models that can think; others pass it over.
            enable_thinking=mode == "cot",
        )
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def record_of(question: Question, probe: Written) -> dict[str, Any]:
    """A probe as JSON values: what `petkit route explain` reads."""
    trace = probe.trajectory
    return {
        "id": question.id,
        "dataset": question.dataset,
        "entropies": list(trace.entropy),
        "probabilities": list(trace.max_prob),
        "probe_tokens": probe.cost,
        "finished": probe.finished,
    }


def load_language_model(
    name: str, device: torch.device | str = "cpu", config: ModelConfig | None = None
) -> LanguageModel:
    """Load a causal language model, or an adapter artifact with its base.

    Args:
        name: as `model.name` of a recipe, or the folder of an artifact.
        device: where to.
        config: further settings of the model.

    Returns:
        The model in evaluation mode. Its hash is that of the weights, with an artifact of base and adapter.

    Raises:
        InputError: an artifact for another task.
        PetkitError: the model cannot be loaded, by kind.
    """
    if (Path(name) / "petkit.json").is_file():
        return _load_artifact(name, device)
    loaded = load_model(config or ModelConfig(name=name), "causal_lm")
    return LanguageModel(name, loaded.model.eval().to(device), loaded.tokenizer, loaded.base_sha256)


def _load_artifact(name: str, device: torch.device | str) -> LanguageModel:
    adapted = load_adapted(name, device)
    task = adapted.artifact.manifest.task
    if task is None or task.type != "causal_lm":
        raise InputError(f"{name} must be a language model's adapter, it is for {task and task.type}")
    both = f"{adapted.base.base_sha256} {adapted.artifact.manifest.tensors_sha256}"
    return LanguageModel(name, adapted.model, adapted.tokenizer, hashlib.sha256(both.encode()).hexdigest())
