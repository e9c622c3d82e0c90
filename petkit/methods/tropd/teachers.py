"""Who a student learns from: models here or behind servers, one for all prompts or one for each data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from petkit.data.vocabularies import check_same_vocabulary
from petkit.errors import ConfigError, InputError, under_key
from petkit.methods.tropd.cache import CachedRow, read_cache, vocabulary_sha256
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.prompts import PromptSet
from petkit.models.config import ModelConfig
from petkit.models.loaded import LoadedModel
from petkit.models.loading import load_model
from petkit.models.transformers_models import load_tokenizer
from petkit.ops.divergence import Divergence
from petkit.rollout.config import SamplingConfig
from petkit.rollout.endpoint import api_key, is_endpoint, parse_endpoint
from petkit.rollout.remote_sampling import RemoteSampler
from petkit.rollout.sampler import end_tokens
from petkit.rollout.sampling import Completion, context_length, sample
from petkit.rollout.scoring import Head, Sequences, TeacherScores, not_finite, teacher_scores
from petkit.rollout.stops import Stops

Ids = Sequence[int]

# The key of the one teacher of all prompts.
EVERY = ""
# Likeliest tokens where no objective says how many: as many as tropd learns from by default.
RECORDED = 64


def recordable(vocab: int | None) -> int:
    """Likeliest tokens that are kept of a distribution where no objective says how many.

    Args:
        vocab: tokens that there are; None where it is not known.
    """
    return min(RECORDED, vocab or RECORDED)


class Teacher(Protocol):
    """What a run asks of a teacher."""

    @property
    def name(self) -> str:
        """As the recipe has it."""

    @property
    def sha256(self) -> str:
        """Of its weights, or of a server's name for it."""

    @property
    def context(self) -> int | None:
        """Tokens that it can hold; None where that is not known."""

    @property
    def head(self) -> Head | None:
        """Of a model that is here, whose whole distribution can be had."""

    def scores(
        self, sequences: Sequences, datasets: Sequence[str], top_k: int, temperature: float
    ) -> TeacherScores:
        """What it says of responses to prompts of these data sets."""

    def write(
        self, prompts: Sequence[Ids], seeds: Sequence[int], settings: SamplingConfig, stops: Stops | None
    ) -> list[Completion]:
        """Responses of its own."""


@dataclass(frozen=True)
class LocalTeacher:
    """A frozen model in evaluation mode."""

    name: str
    sha256: str
    context: int | None
    head: Head
    padding: int

    def scores(
        self, sequences: Sequences, datasets: Sequence[str], top_k: int, temperature: float
    ) -> TeacherScores:
        """What it says of responses, see `teacher_scores`."""
        return teacher_scores(self.head, sequences, top_k, temperature, self.name)

    def write(
        self, prompts: Sequence[Ids], seeds: Sequence[int], settings: SamplingConfig, stops: Stops | None
    ) -> list[Completion]:
        """Responses of its own, see `sample`."""
        return sample(
            self.head.model,
            prompts,
            seeds,
            settings,
            self.padding,
            stops,
            vocab=self.head.vocab,
            name=f"the teacher {self.name}",
        )


@dataclass(frozen=True)
class ServedTeacher:
    """A model behind vLLM or SGLang, whose distribution at temperature 1 is asked for."""

    name: str
    sha256: str
    context: int | None
    remote: RemoteSampler
    head: None = None

    def scores(
        self, sequences: Sequences, datasets: Sequence[str], top_k: int, temperature: float
    ) -> TeacherScores:
        """What it says of responses; entropies are estimated from the likeliest tokens, the others as one."""
        rows = range(len(sequences.starts))
        prompts = [sequences.input_ids[row, : int(sequences.starts[row])].tolist() for row in rows]
        responses = [sequences.token_ids[row][sequences.mask[row]].tolist() for row in rows]
        found = self.remote.score(prompts, responses, top_k)
        mask = sequences.mask

        def whole(parts: Sequence[Tensor]) -> Tensor:
            return spread(torch.cat(list(parts)).to(mask.device), mask)

        log_probs = whole([one.log_probs for one in found])
        if top_k == 0:
            return TeacherScores(log_probs, None)
        top = torch.cat([one.top_log_probs for one in found])
        return TeacherScores(
            log_probs,
            whole([grouped_entropy(top)]),
            whole([one.top_ids for one in found]),
            whole([top]),
        )

    def write(
        self, prompts: Sequence[Ids], seeds: Sequence[int], settings: SamplingConfig, stops: Stops | None
    ) -> list[Completion]:
        """Responses of its own."""
        return self.remote.sample(prompts, seeds, settings)


class CachedTeacher:
    """What a teacher once said of responses.

    Args:
        folder: of the cache.

    Raises:
        PetkitError: it cannot be read, by kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest, rows = read_cache(folder)
        self.context, self.head = None, None
        self._rows: dict[tuple[str, tuple[int, ...], tuple[int, ...]], CachedRow] = {}
        self._numbers: dict[int, list[CachedRow]] = {}
        for row in rows:
            self._numbers.setdefault(row.number, []).append(row)

    @property
    def name(self) -> str:
        """Of the teacher that was asked."""
        return self.manifest.teacher

    @property
    def sha256(self) -> str:
        """Of everything in it."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    def completion(self, number: int, draw: int) -> Completion:
        """A response to a prompt; there are as many as were made, one after the other."""
        own = self._numbers[number]
        row = own[draw % len(own)]
        tokens = tuple(row.token_ids.tolist())
        given = len(tokens) if self.manifest.writer == "teacher" else 0
        return Completion(tuple(row.prompt.tolist()), tokens, given, finished=row.finished)

    @property
    def longest(self) -> int:
        """Tokens of its longest response."""
        return max(len(row.token_ids) for rows in self._numbers.values() for row in rows)

    def check(self, config: DistillConfig, prompts: PromptSet, tokenizer: Any) -> None:
        """Refuse a cache of other prompts, tokens or settings, and one that was not filled to its end.

        What is in it can be asked for from here on.

        Raises:
            ConfigError: names what differs.
        """
        own, wanted = self.manifest, config.objective
        if own.prompts_sha256 != prompts.sha256:
            raise ConfigError(
                f"{self.folder} is a cache of other prompts than data.train has for this student: make one "
                "of them with `petkit distill cache`"
            )
        full = sum(len(self._numbers.get(number, ())) >= own.samples for number in range(len(prompts)))
        if full < len(prompts):
            raise ConfigError(
                f"{self.folder} holds the responses of {full} of {len(prompts)} prompts: fill it to the end "
                "with `petkit distill cache`"
            )
        pairs = {
            "vocabulary": (own.vocabulary_sha256, vocabulary_sha256(tokenizer)),
            "sampling.temperature": (own.sampling.temperature, config.sampling.temperature),
        }
        for name, (found, needed) in pairs.items():
            if found != needed:
                raise ConfigError(
                    f"{self.folder} is a cache of other {name}: it has {found}, this run {needed}"
                )
        if own.writer == "teacher" and wanted.kind != "fkl":
            raise ConfigError(
                f"objective.kind must be fkl with responses that the teacher wrote, as in {self.folder}, got "
                f"{wanted.kind}: make a cache with --by student"
            )
        if own.top_k < wanted.teacher_tokens:
            raise ConfigError(
                f"objective.top_k must be at most {own.top_k}, the likeliest tokens in {self.folder}, got "
                f"{wanted.teacher_tokens}"
            )
        for number, prompt in enumerate(prompts.prompts):
            for row in self._numbers[number]:
                response = tuple(row.token_ids.tolist())
                self._rows[prompt.question.dataset, tuple(row.prompt.tolist()), response] = row

    def scores(
        self, sequences: Sequences, datasets: Sequence[str], top_k: int, temperature: float
    ) -> TeacherScores:
        """What was said of responses that are there, by the teacher of their data set."""
        rows = []
        for place, dataset in enumerate(datasets):
            prompt = sequences.input_ids[place, : int(sequences.starts[place])].tolist()
            response = sequences.token_ids[place][sequences.mask[place]].tolist()
            rows.append(self._rows[dataset, tuple(prompt), tuple(response)])
        mask = sequences.mask

        def whole(parts: Sequence[Tensor]) -> Tensor:
            return spread(torch.cat(list(parts)).to(mask.device), mask)

        return TeacherScores(
            whole([row.log_probs for row in rows]),
            whole([row.entropy for row in rows]),
            whole([row.top_ids[:, :top_k].long() for row in rows]) if top_k else None,
            whole([row.top_log_probs[:, :top_k] for row in rows]) if top_k else None,
        )

    def write(
        self, prompts: Sequence[Ids], seeds: Sequence[int], settings: SamplingConfig, stops: Stops | None
    ) -> list[Completion]:
        """A cache writes nothing new."""
        raise InputError(f"{self.folder} is a cache, and writes no response")


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Put values of tokens that lie one behind the other where a mask is set; 0 elsewhere."""
    whole = values.new_zeros((*mask.shape, *values.shape[1:]))
    whole[mask] = values
    return whole


def grouped_entropy(top_log_probs: Tensor) -> Tensor:
    """Entropy of distributions of which the likeliest tokens are known, all others counted as one.

    Args:
        top_log_probs: (..., k) in nats.

    Returns:
        (...) in nats, never above the truth.

    Source:
        `petkit.rollout.entropy.entropy_from_top`, of many at once.
    """
    p = top_log_probs.double().exp()
    rest = (1 - p.sum(-1)).clamp_min(0.0)
    found: Tensor = -(torch.special.xlogy(p, p).sum(-1) + torch.special.xlogy(rest, rest))
    return found.float()


class Teachers:
    """The teachers of a run, each asked about the sequences of its own prompts.

    Args:
        teachers: by the data set of prompts; the key "" is the teacher of all.
    """

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)

    @property
    def are_here(self) -> bool:
        """Whether there are teachers, and the whole distribution of every one can be had."""
        return bool(self.teachers) and all(one.head is not None for one in self.teachers.values())

    def recorded(self, vocab: int | None) -> int:
        """Likeliest tokens that are asked for when no objective needs them, for the forward KL in the record.

        A server, which sends each of them as text, is asked for none.

        Args:
            vocab: tokens that student and teachers share.
        """
        if self.cached is not None:
            return min(RECORDED, self.cached.manifest.top_k)
        return recordable(vocab) if self.are_here else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the teachers, each once; of a cache those that were asked."""
        return tuple(dict.fromkeys(one["id"] for one in self.facts().values()))

    def facts(self) -> dict[str, dict[str, str]]:
        """Name and hash of each, by the data set, for plans and results; of a cache those that were asked."""
        if self.cached is not None:
            kept = {"cache": self.cached.sha256}
            return {key: one.model_dump() | kept for key, one in self.cached.manifest.teachers.items()}
        return {key: {"id": one.name, "sha256": one.sha256} for key, one in self.teachers.items()}

    @property
    def cached(self) -> CachedTeacher | None:
        """The cache, where responses are from one."""
        only = self.teachers.get(EVERY)
        return only if isinstance(only, CachedTeacher) else None

    @property
    def write_all(self) -> bool:
        """Whether all responses are the teachers' own, kept in a cache."""
        return self.cached is not None and self.cached.manifest.writer == "teacher"

    @property
    def heads(self) -> list[Head]:
        """Of the teachers that are here."""
        return [one.head for one in self.teachers.values() if one.head is not None]

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
            (
                rows,
                teacher.scores(
                    sequences.choose(rows), [datasets[row] for row in rows.tolist()], top_k, temperature
                ),
            )
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

        Raises:
            InputError: a teacher whose whole distribution cannot be had.
            PetkitError: a teacher's logits that are no distribution.
        """
        whole: list[Tensor] = [states.new_zeros(sequences.mask.shape, dtype=torch.float32)] * 3
        for teacher, rows in self._shares(datasets, states.device):
            if teacher.head is None:
                raise InputError(f"{teacher.name} does not show its whole distribution")
            own = sequences.choose(rows)
            with torch.no_grad():
                others = teacher.head.states(own)
            found = student.divergence(states[rows], teacher.head, others, own.mask, beta, temperature)
            unknown = found.forward_kl.isnan()
            if unknown.any() and not teacher.head.logits(others[unknown][:1]).amax().isfinite():
                raise not_finite(f"the teacher {teacher.name}")
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


def load_teachers(
    config: DistillConfig, student: LoadedModel, padding: int, device: torch.device
) -> Teachers:
    """Load the teachers of a recipe, and prove that they mean the same by every token as the student.

    Args:
        config: the recipe.
        student: its model.
        padding: id that fills batches up.
        device: where the teachers go.

    Returns:
        The teachers.

    Raises:
        InputError: vocabularies of other content.
        PetkitError: a model cannot be loaded.
    """
    own = config.teacher
    if own.cache:
        return Teachers({EVERY: CachedTeacher(Path(own.cache))})
    names = {EVERY: own.model} if own.model else dict(own.domains)
    here = [name for name in dict.fromkeys(names.values()) if not is_endpoint(name)]
    keys = {EVERY: "teacher.model"} if own.model else {key: f"teacher.domains.{key}" for key in own.domains}
    key_of = {name: keys[key] for key, name in names.items()}
    models = {name: _load(name, key_of[name], student, config, device) for name in here}
    # One size for all, for their distributions are compared.
    vocab = vocabulary_size(student.model, *(one.model for one in models.values()))
    loaded: dict[str, Teacher] = {}
    for name in dict.fromkeys(names.values()):
        if name in models:
            one = models[name]
            head = Head(one.model, vocab)
            loaded[name] = LocalTeacher(name, one.base_sha256, context_length(one.model), head, padding)
        else:
            loaded[name] = _served(name, student, config)
    return Teachers({key: loaded[name] for key, name in names.items()})


def _load(
    name: str, key: str, student: LoadedModel, config: DistillConfig, device: torch.device
) -> LoadedModel:
    with under_key("model.name", key):
        loaded = load_model(ModelConfig(name=name), "causal_lm")
    check_same_vocabulary(student.tokenizer, loaded.tokenizer, config.student.model.name, name)
    loaded.model.eval().requires_grad_(False).to(device)
    return loaded


def _served(name: str, student: LoadedModel, config: DistillConfig) -> ServedTeacher:
    own = config.teacher
    if own.tokenizer is None:
        raise ConfigError(
            "teacher.tokenizer must name the served teacher's own model folder or hub name: a server shows "
            "no vocabulary that could be compared with the student's"
        )
    with under_key("model.name", "teacher.tokenizer"):
        tokenizer = load_tokenizer(own.tokenizer)
    check_same_vocabulary(student.tokenizer, tokenizer, config.student.model.name, own.tokenizer)
    endpoint, vocab = parse_endpoint(name), known_tokens(student.tokenizer)
    remote = RemoteSampler(
        endpoint,
        own.served,
        vocab,
        end_tokens(student.model),
        key=api_key(),
        section="teacher.served",
    )
    return ServedTeacher(name, endpoint.sha256, None, remote)


def vocabulary_size(*models: torch.nn.Module) -> int:
    """Tokens that all models know: some fill their tables up with rows that stand for nothing."""
    tables = [one.get_output_embeddings().weight for one in models]  # type: ignore[operator]
    return min(int(table.shape[0]) for table in tables)


def known_tokens(tokenizer: Any) -> int:
    """The largest number of a token and one more: numbers may be left out."""
    return 1 + max(map(int, tokenizer.get_vocab().values()))


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]], rows: int) -> Tensor | None:
    first = parts[0][1]
    if first is None or any(values is None for _, values in parts):
        return None
    whole = first.new_zeros((rows, *first.shape[1:]))
    for places, values in parts:
        assert values is not None
        whole[places] = values
    return whole
