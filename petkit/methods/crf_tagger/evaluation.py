"""Measuring a tagger: accuracy of words, and F1 of spans where tags write spans."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from petkit.data.conll import TaggedSentence
from petkit.methods.crf_tagger.algorithm import Ratio, SpanScores, span_scores, word_accuracy
from petkit.methods.crf_tagger.inputs import Reader, TaggedSentences
from petkit.methods.crf_tagger.model import Tagger
from petkit.training.config import Precision
from petkit.training.evaluate import Evaluation, StepOutput, autocast, to_device

_Chunk = tuple[list[int], dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class TaggerEvaluation(Evaluation):
    """An evaluation with the scores of spans; selection maximises their F1 where there is one."""

    spans: SpanScores | None = None
    sentences: int = 0
    predicted: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    @property
    def score(self) -> float:
        """F1 of the spans, or the accuracy of the words."""
        return super().score if self.spans is None else self.spans.f1.value

    def record(self) -> dict[str, float]:
        """What metrics.jsonl keeps of an evaluation."""
        return super().record() | ({} if self.spans is None else {"eval_f1": self.spans.f1.value})

    def payload(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        spans = None if self.spans is None else self.spans.payload()
        measured = {name: value for name, value in super().payload().items() if name != "per_class"}
        return {**measured, "unit": "words", "sentences": self.sentences, "spans": spans}


def tagging_step(model: Any, batch: Any) -> StepOutput:
    """Sum the losses of a batch; the count is that of its words.

    Args:
        model: a `Tagger`.
        batch: as `TaggedSentences.collate` makes it.

    Returns:
        The sums.
    """
    return StepOutput(model.loss(batch), int(batch["mask"].sum()))


def evaluate_tagger(
    model: Tagger,
    dataset: TaggedSentences,
    labels: Sequence[str],
    scheme: str,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> TaggerEvaluation:
    """Tag every sentence of a split once and compare.

    Args:
        model: the tagger; its training mode is restored afterwards.
        dataset: the split, not empty.
        labels: the tags by number.
        scheme: how tags write spans, or none.
        batch_size: sentences per forward pass; the result does not depend on it beyond rounding.
        device: where the model is.
        precision: bf16 runs under autocast.

    Returns:
        The evaluation, with 95 % intervals of a bootstrap over sentences, None of a single sentence; the loss
        is the mean a word.
        With several processes each does all of it, so that it is the same on all.
    """
    loss, started = 0.0, time.perf_counter()
    predicted: list[tuple[str, ...]] = [()] * len(dataset)
    for rows, batch, emissions in _forward(model, dataset, batch_size, torch.device(device), precision):
        loss += float(model.loss_of(emissions, batch))
        for row, path in zip(rows, model.decode(emissions, batch["mask"]), strict=True):
            predicted[row] = tuple(labels[tag] for tag in path)
    rate = len(dataset) / (time.perf_counter() - started)
    gold = [sentence.tags for sentence in dataset.sentences]
    accuracy: Ratio = word_accuracy(gold, predicted)
    words = sum(map(len, gold))
    return TaggerEvaluation(
        n=words,
        loss=loss / words,
        examples_per_second=rate,
        accuracy=accuracy.value,
        interval=accuracy.interval,
        spans=None if scheme == "none" else span_scores(gold, predicted),
        sentences=len(gold),
        predicted=tuple(predicted),
    )


def _forward(
    model: Tagger, dataset: TaggedSentences, batch_size: int, device: torch.device, precision: Precision
) -> Iterator[_Chunk]:
    """Rows, batch and emissions of each batch, in evaluation mode, sentences of like length together."""
    order = sorted(range(len(dataset)), key=lambda row: len(dataset.sentences[row].words))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = to_device(dataset.collate([dataset[row] for row in rows]), device)
                with autocast(device, precision):
                    emissions = model(batch)
                yield rows, batch, emissions
    finally:
        model.train(was_training)


def tag_words(
    model: Tagger,
    reader: Reader,
    sentences: Sequence[Sequence[str]],
    labels: Sequence[str],
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> list[tuple[str, ...]]:
    """Tag sentences of words without tags.

    Args:
        model: the tagger.
        reader: makes its inputs.
        sentences: words, none empty.
        labels: the tags by number.
        batch_size: sentences per forward pass.
        device: where the model is.
        precision: bf16 runs under autocast.

    Returns:
        The tags of each sentence.
    """
    # Any tag will do: nothing is compared with it.
    blank = [
        TaggedSentence(tuple(words), (labels[0],) * len(words), "", (0,) * len(words)) for words in sentences
    ]
    dataset = TaggedSentences(blank, labels, reader)
    found: list[tuple[str, ...]] = [()] * len(dataset)
    for rows, batch, emissions in _forward(model, dataset, batch_size, torch.device(device), precision):
        for row, path in zip(rows, model.decode(emissions, batch["mask"]), strict=True):
            found[row] = tuple(labels[tag] for tag in path)
    return found
