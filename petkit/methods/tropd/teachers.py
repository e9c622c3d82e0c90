"""Who a student learns from: local models, one for all prompts or one for each of their data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from petkit.data.vocabularies import check_same_vocabulary
from petkit.errors import InputError
from petkit.methods.tropd.config import DistillConfig
from petkit.models.config import ModelConfig
from petkit.models.loaded import LoadedModel
from petkit.models.loading import load_model
from petkit.ops.divergence import Divergence
from petkit.rollout.scoring import Head, Sequences, TeacherScores, teacher_scores

# The key of the one teacher of all prompts.
EVERY = ""


@dataclass(frozen=True)
class Teacher:
    """A frozen model in evaluation mode."""

    loaded: LoadedModel
    head: Head


class Teachers:
    """The teachers of a run, each asked about the sequences of its own prompts.

    Args:
        teachers: by the data set of prompts; the key "" is the teacher of all.
    """

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)

    def of(self, dataset: str) -> Teacher:
        """The teacher of a data set.

        Raises:
            InputError: there is none.
        """
        found = self.teachers.get(EVERY) or self.teachers.get(dataset)
        if found is None:
            raise InputError(
                f"teacher.domains must name a teacher for data set {dataset!r}, got "
                f"{', '.join(sorted(self.teachers))}"
            )
        return found

    def scores(
        self, sequences: Sequences, datasets: Sequence[str], top_k: int, temperature: float
    ) -> TeacherScores:
        """What each sequence's own teacher says of its tokens.

        Args:
            sequences: the batch.
            datasets: of its prompts.
            top_k: likeliest tokens to name.
            temperature: of the teachers' distributions.

        Returns:
            The scores.
        """
        parts = [
            (rows, teacher_scores(teacher.head, sequences.choose(rows), top_k, temperature))
            for teacher, rows in self._shares(datasets, sequences.mask.device)
        ]
        if len(parts) == 1:
            return parts[0][1]
        fields = ("log_probs", "entropy", "top_ids", "top_log_probs")
        columns = [[(rows, getattr(scores, name)) for rows, scores in parts] for name in fields]
        return TeacherScores(*(_joined(column, len(datasets)) for column in columns))  # type: ignore[arg-type]

    def divergence(
        self,
        student: Head,
        states: Tensor,
        sequences: Sequences,
        datasets: Sequence[str],
        beta: float,
        temperature: float,
    ) -> Divergence:
        """Divergences over all tokens between a student and each sequence's own teacher.

        Args:
            student: the student's head.
            states: of the student, as `Head.states` gives them for the sequences.
            sequences: the batch.
            datasets: of its prompts.
            beta: as in `petkit.ops.divergence`.
            temperature: of both sides.

        Returns:
            The divergences (batch, tokens), with a gradient in the student.
        """
        whole: list[Tensor] = [states.new_zeros(sequences.mask.shape, dtype=torch.float32)] * 3
        for teacher, rows in self._shares(datasets, states.device):
            own = sequences.choose(rows)
            with torch.no_grad():
                others = teacher.head.states(own)
            found = student.divergence(states[rows], teacher.head, others, own.mask, beta, temperature)
            whole = [all_.index_copy(0, rows, part) for all_, part in zip(whole, found, strict=True)]
        return Divergence(*whole)

    def _shares(self, datasets: Sequence[str], device: torch.device) -> list[tuple[Teacher, Tensor]]:
        """Each teacher with the numbers of its sequences."""
        if EVERY in self.teachers:
            return [(self.teachers[EVERY], torch.arange(len(datasets), device=device))]
        rows: dict[str, list[int]] = {}
        for row, dataset in enumerate(datasets):
            rows.setdefault(dataset, []).append(row)
        return [(self.of(name), torch.tensor(own, device=device)) for name, own in rows.items()]


def load_teachers(config: DistillConfig, student: LoadedModel, device: torch.device) -> Teachers:
    """Load the teachers of a recipe, and prove that they mean the same by every token as the student.

    Args:
        config: the recipe.
        student: its model.
        device: where the teachers go.

    Returns:
        The teachers.

    Raises:
        InputError: vocabularies of other content.
        PetkitError: a model cannot be loaded.
    """
    own = config.teacher
    names = {EVERY: own.model} if own.model else dict(own.domains)
    found = {key: _load(name, student, config, device) for key, name in names.items()}
    # One size for all, for their distributions are compared.
    vocab = vocabulary_size(student.model, *(one.model for one in found.values()))
    return Teachers({key: Teacher(one, Head(one.model, vocab)) for key, one in found.items()})


def _load(name: str, student: LoadedModel, config: DistillConfig, device: torch.device) -> LoadedModel:
    loaded = load_model(ModelConfig(name=name), "causal_lm")
    check_same_vocabulary(student.tokenizer, loaded.tokenizer, config.student.model.name, name)
    loaded.model.eval().requires_grad_(False).to(device)
    return loaded


def vocabulary_size(*models: Any) -> int:
    """Tokens that all models know: some fill their tables up with rows that stand for nothing."""
    return min(int(one.get_output_embeddings().weight.shape[0]) for one in models)


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]], rows: int) -> Tensor | None:
    first = parts[0][1]
    if first is None:
        return None
    whole = first.new_zeros((rows, *first.shape[1:]))
    for places, values in parts:
        assert values is not None
        whole[places] = values
    return whole
