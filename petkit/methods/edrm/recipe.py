"""Routing with a real model, top to bottom: probe a question, choose a mode, answer in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petkit.data.questions import Question
from petkit.errors import InputError
from petkit.methods.edrm.algorithm import MODES, Decision, Mode
from petkit.methods.edrm.calibration import probed_places
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.outcome_file import OutcomeFile, outcome_key
from petkit.methods.edrm.rule import Rule
from petkit.methods.edrm.writers import Begun, Keep, Progress, Prompt, Writer
from petkit.rollout.entropy import Trajectory, bias_summary
from petkit.rollout.verifiers import score

# Batches that are measured before their outcomes go to the disk: standard answers that are already finished
# after their probe leave gaps, which several batches fill.
BATCHES_KEPT = 4


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

    language_model: Writer[Any]
    rule: Rule
    batch_size: int = 16

    def __post_init__(self) -> None:
        self.language_model.check(self.config)

    @property
    def config(self) -> RouterConfig:
        """The rule's."""
        return self.rule.config

    def probe(
        self,
        questions: Sequence[Question],
        advance: Progress = lambda *_: None,
        keep: Keep = lambda _: False,
    ) -> list[Begun]:
        """Decode the first tokens of each standard answer, with their entropies.

        Args:
            questions: any number.
            advance: told how many are probed.
            keep: whether the answer to a question is wanted whole, by its trajectory; `answer` goes on with
                the others too, but a server then writes them anew.

        Returns:
            The probes.
        """
        prompts = self._prompts(questions, "standard")
        return self.language_model.begin(prompts, self.config, keep, self.batch_size, advance)

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
        probes = self.probe([questions[row] for row in probed], advance, self._stays_standard)
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

    def _stays_standard(self, trajectory: Trajectory) -> bool:
        """Whether one probe alone decides that its answer is gone on with."""
        if self.config.level == "dataset":
            return False
        (decision,) = self.rule.decide_each([trajectory.entropy])
        return decision.mode == "standard"

    def _decisions(self, questions: Sequence[Question], probes: Mapping[int, Begun]) -> list[Decision]:
        if self.config.level == "question":
            return self.rule.decide_each([probes[row].trajectory.entropy for row in sorted(probes)])
        chosen: dict[int, Decision] = {}
        for name, rows in _by_dataset(questions).items():
            own = [probes[row].trajectory.entropy for row in rows if row in probes]
            chosen |= dict.fromkeys(rows, self.rule.decide_dataset(name, own))
        return [chosen[row] for row in range(len(questions))]

    def answer(
        self,
        questions: Sequence[Question],
        mode: Mode,
        probes: Sequence[Begun] | None = None,
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
        prompts = self._prompts(questions, mode)
        if probes:
            return self.language_model.finish(prompts, probes, self.config, self.batch_size, advance)
        return self.language_model.write(prompts, self.config, self.batch_size, advance)

    def key_of(self, question: Question) -> str:
        """Under what the outcome of a question is kept."""
        return outcome_key(question, self.config, self.language_model.measured_by)

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
                raise InputError(f"{question.name} has no answer: this needs labelled questions")
        kept = kept or OutcomeFile(None)
        keys = [self.key_of(question) for question in questions]
        missing = {key: own for key, own in zip(keys, questions, strict=True) if key not in kept.records}
        # Prompts of like lengths go together, so that little is padded.
        order = sorted(missing.items(), key=lambda item: len(item[1].prompt()))
        for start in range(0, len(order), step := self.batch_size * BATCHES_KEPT):
            chunk = order[start : start + step]
            records = self._measure([question for _, question in chunk], advance)
            pairs = [(key, record) for (key, _), record in zip(chunk, records, strict=True)]
            kept.append(pairs, self.language_model.measured_by)
        return [kept.records[key] for key in keys]

    def _measure(self, questions: Sequence[Question], advance: Progress) -> list[dict[str, Any]]:
        probes = self.probe(questions, advance, lambda _: True)
        pairs = zip(questions, probes, strict=True)
        records = [record_of(question, probe, self.config.stop) for question, probe in pairs]
        for mode in MODES:
            answers = self.answer(questions, mode, probes if mode == "standard" else None, advance)
            for question, record, (text, tokens) in zip(questions, records, answers, strict=True):
                result = {"correct": score(question, text), "tokens": tokens, "text": text}
                record.setdefault("modes", {})[mode] = result
        return records

    def _prompts(self, questions: Sequence[Question], mode: Mode) -> list[Prompt]:
        return [self._prompt(question, mode) for question in questions]

    def _prompt(self, question: Question, mode: Mode) -> Prompt:
        text = getattr(self.config.prompts, mode).replace("{question}", question.prompt())
        system = self.config.prompts.system
        messages = [{"role": "system", "content": system}] if system else []
        return Prompt(question.name, (*messages, {"role": "user", "content": text}), thinking=mode == "cot")


def record_of(question: Question, probe: Begun, stop: Sequence[str] = ()) -> dict[str, Any]:
    """A probe as JSON values, with the texts that might end it: what `petkit route explain` reads."""
    trace = probe.trajectory
    record = {
        "id": question.id,
        "dataset": question.dataset,
        "entropies": list(trace.entropy),
        "probabilities": list(trace.max_prob),
        "probe_tokens": probe.cost,
        "finished": probe.finished,
    }
    if stop:
        record["stop"] = list(stop)
    if trace.bias:
        record["entropy_bias"] = bias_summary(trace.bias)
    return record
