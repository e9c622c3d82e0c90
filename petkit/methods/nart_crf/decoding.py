"""Translating: beam search of the teacher; one step, several lengths and a choice of the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petkit.data.subwords import Subwords
from petkit.errors import InputError
from petkit.methods.nart_crf.algorithm import candidate_lengths, deduplicated
from petkit.methods.nart_crf.config import DecodeConfig
from petkit.methods.nart_crf.inputs import padded
from petkit.methods.nart_crf.model import Nart, Teacher
from petkit.training.evaluate import to_device

# Scores of the vocabulary that are in memory at once, in numbers: 256 MiB as float32.
MOST_SCORES = 2**26


@dataclass(frozen=True)
class Found:
    """The translation of one sentence."""

    ids: tuple[int, ...]
    """Subwords, without the end."""

    score: float | None
    """Log-probability a token that chose it; None where there was nothing to choose."""

    candidates: int = 1
    """Translations that it was chosen from."""


@dataclass(frozen=True)
class Translator:
    """A model with how it is asked.

    Args:
        model: in evaluation mode.
        vocabulary: of source and target.
        decode: beams, candidates, repeats.
        rescorer: chooses among candidates in the place of the model; of the same vocabulary.
    """

    model: Nart | Teacher
    vocabulary: Subwords
    decode: DecodeConfig
    rescorer: Teacher | None = None

    def translate(
        self, sources: Sequence[str], batch_size: int, advance: Callable[[int], None] | None = None
    ) -> list[Found]:
        """Translate sentences, those of like length together.

        Args:
            sources: not empty.
            batch_size: sentences at once; the result does not depend on it beyond rounding.
            advance: told how many more are done.

        Returns:
            Translations in the order of the sources.

        Raises:
            InputError: a source is longer than the model's positions; its position is named.
        """
        rows = self._rows(sources)
        found: list[Found | None] = [None] * len(rows)
        for places in _batches([len(row) for row in rows], batch_size):
            for place, one in zip(places, self._batch([rows[place] for place in places]), strict=True):
                found[place] = one
            if advance is not None:
                advance(len(places))
        return [one for one in found if one is not None]

    def texts(self, found: Sequence[Found]) -> list[str]:
        """What translations say."""
        return [text.strip() for text in self.vocabulary.decode([one.ids for one in found])]

    @property
    def most(self) -> int:
        """Subwords that a sentence may have, its end included."""
        return self.model.config.model.max_positions

    def lengths(self, sources: Sequence[str]) -> list[int]:
        """How many subwords each sentence has, its end included."""
        return [len(ids) + 1 for ids in self.vocabulary.encode(sources)]

    def _rows(self, sources: Sequence[str]) -> list[list[int]]:
        rows = [[*ids, self.vocabulary.eos_id] for ids in self.vocabulary.encode(sources)]
        for place, row in enumerate(rows):
            if len(row) > self.most:
                raise InputError(
                    f"sentence {place + 1} has {len(row)} subwords with its end, the model reads "
                    f"{self.most} at most: divide it"
                )
        return rows

    # Not inference_mode: a model that caches a tensor here may need it for gradients afterwards.
    @torch.no_grad()
    def _batch(self, rows: Sequence[list[int]]) -> list[Found]:
        device = next(self.model.parameters()).device
        source = padded(rows, self.vocabulary.pad_id)
        ids, mask = to_device((source.ids, source.mask), device)
        if isinstance(self.model, Teacher):
            return beam_search(self.model, ids, mask, self.decode.beam)
        return self._in_one_step(self.model, ids, mask)

    def _in_one_step(self, model: Nart, ids: Tensor, mask: Tensor) -> list[Found]:
        memory = model.body.encode(ids, mask)
        expected = model.expected_lengths(memory, mask)
        count = self.decode.candidates
        lengths = candidate_lengths(expected, count, model.config.model.max_positions).flatten()
        chunk = max(1, MOST_SCORES // (int(lengths.max()) * len(self.vocabulary)))
        rows: list[list[int]] = []
        scores: list[Tensor] = []
        for start in range(0, len(lengths), chunk):
            piece = slice(start, start + chunk)
            owner = torch.arange(start, start + len(lengths[piece]), device=ids.device) // count
            tokens, score = one_step(
                model, memory[owner], ids[owner], mask[owner], lengths[piece], scored=self._ranks_itself
            )
            rows += self._cleaned(tokens)
            scores.append(score)
        ranks = torch.cat(scores) if self.rescorer is None else self._rescored(self.rescorer, ids, mask, rows)
        return [self._best(rows, ranks, start) for start in range(0, len(rows), count)]

    @property
    def _ranks_itself(self) -> bool:
        return self.decode.candidates > 1 and self.rescorer is None

    def _cleaned(self, tokens: Tensor) -> list[list[int]]:
        """Rows without special tokens, and without repeats where that is asked for."""
        kept = [[token for token in row if token > self.vocabulary.unknown_id] for row in tokens.tolist()]
        return [deduplicated(row) for row in kept] if self.decode.deduplicate else kept

    def _rescored(self, teacher: Teacher, ids: Tensor, mask: Tensor, rows: list[list[int]]) -> Tensor:
        """The teacher's log-probability a token of every candidate, its end included."""
        count = self.decode.candidates
        target = padded([[*row, self.vocabulary.eos_id] for row in rows], self.vocabulary.pad_id)
        target_ids, target_mask = to_device((target.ids, target.mask), ids.device)
        chunk = max(1, MOST_SCORES // (target_ids.shape[1] * len(self.vocabulary)))
        found = []
        for start in range(0, len(rows), chunk):
            own = slice(start, start + chunk)
            owner = torch.arange(start, start + len(rows[own]), device=ids.device) // count
            batch = {"source": ids[owner], "source_mask": mask[owner]}
            batch |= {"target": target_ids[own], "target_mask": target_mask[own]}
            found.append(teacher.log_probabilities(batch) / target_mask[own].sum(1))
        return torch.cat(found)

    def _best(self, rows: list[list[int]], ranks: Tensor, start: int) -> Found:
        count = self.decode.candidates
        best = start + int(ranks[start : start + count].argmax()) if count > 1 else start
        scored = self._ranks_itself or self.rescorer is not None
        return Found(tuple(rows[best]), float(ranks[best]) if scored else None, count)


def one_step(
    model: Nart, memory: Tensor, source: Tensor, source_mask: Tensor, lengths: Tensor, scored: bool
) -> tuple[Tensor, Tensor]:
    """Write all tokens of translations of given lengths at once.

    Args:
        model: in evaluation mode.
        memory: states of the source, (batch, source time, hidden).
        source: int64 (batch, source time).
        source_mask: bool (batch, source time).
        lengths: int64 (batch,), the end included.
        scored: compute how likely they are.

    Returns:
        Tokens, int64 (batch, time), -1 behind the end of a row; and their log-probabilities a token,
        float (batch,), in nats: of the whole under the CRF, or of each by itself; zeros unless scored.

    Source:
        Sun et al. 2019, section 3.2; Viterbi decoding over the candidates of `petkit.nn.BeamCRF`.
    """
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    hidden = model.body.decode(memory, source, source_mask, mask)
    emissions = model.body.emissions(hidden)
    score = emissions.new_zeros(len(lengths))
    if model.crf is None:
        tokens = emissions.argmax(2).masked_fill(~mask, -1)
        if scored:
            best = emissions.amax(2) - emissions.logsumexp(2)
            score = best.masked_fill(~mask, 0.0).sum(1) / lengths
        return tokens, score
    states = hidden if model.crf.dynamic is not None else None
    tokens, total = model.crf.decode(emissions, mask, states)
    if scored:
        score = (total - model.crf.log_partition(emissions, mask, states)) / lengths
    return tokens, score


def beam_search(model: Teacher, ids: Tensor, mask: Tensor, beam: int) -> list[Found]:
    """Translate by the beam search of the transformers library.

    Args:
        model: in evaluation mode.
        ids: int64 (batch, source time).
        mask: bool (batch, source time).
        beam: hypotheses that are kept; 1 is greedy.

    Returns:
        Translations, with the log-probability a token that ranked them where there are several hypotheses.
    """
    from transformers import GenerationConfig

    vocabulary, positions = model.vocabulary, model.config.model.max_positions
    settings = GenerationConfig(
        num_beams=beam,
        do_sample=False,
        # Not less for short sources: a translation must not depend on the batch that it is in.
        max_new_tokens=positions - 1,
        pad_token_id=vocabulary.pad_id,
        bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id,
        decoder_start_token_id=vocabulary.bos_id,
        return_dict_in_generate=True,
        output_scores=beam > 1,
    )
    made = model.body.generate(input_ids=ids, attention_mask=mask.long(), generation_config=settings)
    scores = made.sequences_scores.tolist() if beam > 1 else [None] * len(ids)
    rows = made.sequences.tolist()
    return [
        Found(tuple(token for token in row if token > vocabulary.unknown_id), score, beam)
        for row, score in zip(rows, scores, strict=True)
    ]


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions of sentences, in batches of like length."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    for start in range(0, len(order), size):
        yield order[start : start + size]
