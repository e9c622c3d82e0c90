"""The measures and the softmax's loss, as functions of tags and tensors; the CRF is `petkit.nn.CRF`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from petkit.data.spans import spans_of
from petkit.errors import InputError

DRAWS = 1000
# Resamples that are drawn at once; more would only take more memory.
_CHUNK = 100
_ENDS = (2.5, 97.5)


def cross_entropy(emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
    """Sum the cross-entropies of the words of a batch.

    Args:
        emissions: (batch, words, tags), any floating dtype.
        tags: int64 (batch, words); anything where the mask is not set.
        mask: bool (batch, words), true where a word is.

    Returns:
        A scalar in nats, float32.
    """
    return functional.cross_entropy(emissions[mask].float(), tags[mask], reduction="sum")


@dataclass(frozen=True)
class Ratio:
    """A measure with the 95 % interval of a bootstrap over sentences."""

    value: float
    interval: tuple[float, float] | None
    """None of a single sentence, of which all resamples are alike."""

    def payload(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"value": self.value, "interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True)
class SpanScores:
    """Micro-averaged precision, recall and F1 over spans."""

    precision: Ratio
    recall: Ratio
    f1: Ratio
    gold: int
    predicted: int
    correct: int
    per_type: dict[str, dict[str, float]]

    def payload(self) -> dict[str, Any]:
        """JSON-ready values."""
        measures = {name: getattr(self, name).payload() for name in ("precision", "recall", "f1")}
        counts = {"gold": self.gold, "predicted": self.predicted, "correct": self.correct}
        return {**measures, **counts, "per_type": self.per_type}


def span_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], seed: int = 0, draws: int = DRAWS
) -> SpanScores:
    """Score predicted spans against true ones.

    Args:
        gold: the true tags of each sentence.
        predicted: as many tags of each sentence.
        seed: of the bootstrap.
        draws: resamples of the bootstrap.

    Returns:
        A predicted span is correct when its first word, last word and type are those of a true one. Summed
        over sentences: precision is correct / predicted, recall correct / true, F1 = 2 correct / (predicted +
        true); 0 where there is nothing to divide by. The intervals are percentiles over resamples of the
        sentences; of a single sentence there is none.

    Raises:
        InputError: there is no sentence, or the lengths of two differ.

    Source:
        Tjong Kim Sang and De Meulder 2003; the interval: Efron and Tibshirani 1993, chapter 13.
    """
    _check_pairs(gold, predicted)
    true = [set(spans_of(tags)) for tags in gold]
    found = [set(spans_of(tags)) for tags in predicted]
    pairs = list(zip(true, found, strict=True))
    counts = np.array([[len(a & b), len(b), len(a)] for a, b in pairs], dtype=np.int64)
    resampled = _resampled(counts, seed, draws)
    totals = counts.sum(0)
    correct, guessed, wanted = (int(total) for total in totals)
    return SpanScores(
        precision=_ratio(_precision, totals, resampled),
        recall=_ratio(_recall, totals, resampled),
        f1=_ratio(_f1, totals, resampled),
        gold=wanted,
        predicted=guessed,
        correct=correct,
        per_type=_per_type(pairs),
    )


def word_accuracy(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], seed: int = 0, draws: int = DRAWS
) -> Ratio:
    """The fraction of words with the true tag.

    Args:
        gold: the true tags of each sentence.
        predicted: as many tags of each sentence.
        seed: of the bootstrap.
        draws: resamples of the bootstrap.

    Returns:
        The accuracy; its interval resamples sentences, since the words of one are not independent, and is
        None of a single sentence.

    Raises:
        InputError: there is no sentence, or the lengths of two differ.

    Source:
        Efron and Tibshirani 1993, chapter 13.
    """
    _check_pairs(gold, predicted)
    rows = [
        [sum(a == b for a, b in zip(x, y, strict=True)), len(x)] for x, y in zip(gold, predicted, strict=True)
    ]
    counts = np.array(rows, dtype=np.int64)
    return _ratio(_precision, counts.sum(0), _resampled(counts, seed, draws))


def resampled_sums(counts: NDArray[np.int64], seed: int, draws: int) -> NDArray[np.int64]:
    """Sum the counts of sentences over bootstrap resamples.

    Args:
        counts: (sentences, k).
        seed: of the draws.
        draws: how many resamples, each of as many sentences, with replacement.

    Returns:
        int64 (draws, k).
    """
    source = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, _CHUNK):
        size = (min(_CHUNK, draws - start), len(counts))
        found += [counts[rows].sum(0) for rows in source.integers(0, len(counts), size)]
    return np.array(found, dtype=np.int64).reshape(draws, counts.shape[1])


def _check_pairs(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> None:
    if not gold or len(gold) != len(predicted):
        raise InputError(f"scores need tags of the same sentences, got {len(gold)} and {len(predicted)}")
    for row, (true, found) in enumerate(zip(gold, predicted, strict=True)):
        if len(true) != len(found):
            raise InputError(f"sentence {row} must have {len(true)} predicted tags, got {len(found)}")


def _divided(above: Any, below: Any) -> NDArray[np.float64]:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    # 0 above wherever 0 is below, so that the quotient there is 0.
    found: NDArray[np.float64] = above / np.where(below > 0, below, 1)
    return found


def _precision(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    return _divided(sums[..., 0], sums[..., 1])


def _recall(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    return _divided(sums[..., 0], sums[..., 2])


def _f1(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    return _divided(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _resampled(counts: NDArray[np.int64], seed: int, draws: int) -> NDArray[np.int64] | None:
    """None of a single sentence: its resamples would give an interval of one point."""
    return None if len(counts) == 1 else resampled_sums(counts, seed, draws)


def _ratio(measure: Any, totals: NDArray[np.int64], resampled: NDArray[np.int64] | None) -> Ratio:
    if resampled is None:
        return Ratio(float(measure(totals)), None)
    low, high = np.percentile(measure(resampled), _ENDS)
    return Ratio(float(measure(totals)), (float(low), float(high)))


def _per_type(pairs: Sequence[tuple[set[Any], set[Any]]]) -> dict[str, dict[str, float]]:
    kinds = sorted({span.type for pair in pairs for own in pair for span in own})
    return {kind: _of_type(pairs, kind) for kind in kinds}


def _of_type(pairs: Sequence[tuple[set[Any], set[Any]]], kind: str) -> dict[str, float]:
    sums = np.zeros(3, dtype=np.int64)
    for true, found in pairs:
        a, b = ({span for span in own if span.type == kind} for own in (true, found))
        sums += (len(a & b), len(b), len(a))
    measures = {"precision": _precision(sums), "recall": _recall(sums), "f1": _f1(sums)}
    return {**{name: float(value) for name, value in measures.items()}, "gold": int(sums[2])}
