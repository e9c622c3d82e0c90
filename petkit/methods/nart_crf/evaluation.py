"""Measuring a translator: BLEU and chrF with intervals, the loss, the rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from petkit.data.parallel import SentencePair
from petkit.errors import InputError, MissingError
from petkit.methods.nart_crf.decoding import Translator
from petkit.methods.nart_crf.inputs import PairDataset
from petkit.methods.nart_crf.model import training_step
from petkit.training.config import Precision
from petkit.training.evaluate import Evaluation, evaluate

RESAMPLES = 1000


@dataclass(frozen=True)
class TranslationEvaluation(Evaluation):
    """An evaluation with the scores of translations; selection maximises BLEU."""

    bleu: float = 0.0
    bleu_interval: tuple[float, float] | None = None
    chrf: float = 0.0
    chrf_interval: tuple[float, float] | None = None
    signature: str = ""
    translations: tuple[str, ...] = field(default=(), repr=False)

    @property
    def score(self) -> float:
        """BLEU."""
        return self.bleu

    def record(self) -> dict[str, float]:
        """What metrics.jsonl keeps."""
        return {**super().record(), "eval_bleu": self.bleu, "eval_chrf": self.chrf}

    def payload(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        scores = {
            name: {"value": value, "interval": None if interval is None else list(interval)}
            for name, value, interval in (
                ("bleu", self.bleu, self.bleu_interval),
                ("chrf", self.chrf, self.chrf_interval),
            )
        }
        rest = {"n": self.n, "loss": self.loss, "examples_per_second": self.examples_per_second}
        return {**scores, "sacrebleu": self.signature, "unit": "sentences", **rest}


def check_sacrebleu() -> None:
    """See that the scores can be computed, before hours of work.

    Raises:
        MissingError: sacrebleu is not installed.
    """
    try:
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise MissingError('BLEU needs sacrebleu: pip install "petkit[nlp]"') from error


@dataclass(frozen=True)
class Scores:
    """BLEU and chrF of a set of translations, with 95 % intervals where they were asked for."""

    bleu: float
    chrf: float
    bleu_interval: tuple[float, float] | None
    chrf_interval: tuple[float, float] | None
    signature: str


def corpus_scores(
    translations: Sequence[str], references: Sequence[str], resamples: int = RESAMPLES
) -> Scores:
    """Score translations against one reference each.

    Args:
        translations: one for each reference.
        references: at least one.
        resamples: of the bootstrap over sentences; 0 for no intervals.

    Returns:
        The scores, from 0 to 100.

    Raises:
        MissingError: sacrebleu is not installed.
        InputError: there is none, or not as many of both.

    Source:
        Post 2018 and sacrebleu: BLEU with the tokenisation 13a, chrF2; the bootstrap of Koehn 2004.
    """
    check_sacrebleu()
    from sacrebleu.metrics import BLEU, CHRF

    if not references or len(references) != len(translations):
        raise InputError(f"scores need a reference each, got {len(translations)} and {len(references)}")
    metrics: list[Any] = [BLEU(), CHRF()]
    said, meant = list(translations), [list(references)]
    scores = [float(metric.corpus_score(said, meant).score) for metric in metrics]
    # A single sentence has no other resample than itself.
    drawn = resamples if len(references) > 1 else 0
    intervals = [_interval(metric, said, meant, drawn) if drawn > 1 else None for metric in metrics]
    return Scores(scores[0], scores[1], intervals[0], intervals[1], str(metrics[0].get_signature()))


def _interval(metric: Any, said: list[str], meant: list[list[str]], resamples: int) -> tuple[float, float]:
    """Percentiles of sacrebleu's own resamples, whose count and seed its signature then names.

    Its `corpus_score` fails on resamples of which some score 0, and its mean with a width may exceed 100.
    """
    from sacrebleu.significance import _bootstrap_resample

    sentences = metric._extract_corpus_statistics(said, meant)
    metric.n_bootstrap = resamples
    metric.seed, drawn = _bootstrap_resample(sentences, metric, resamples)
    low, high = np.percentile([float(one.score) for one in drawn], (2.5, 97.5))
    return float(low), float(high)


def evaluate_translator(
    translator: Translator,
    pairs: Sequence[SentencePair],
    *,
    batch_size: int,
    precision: Precision = "fp32",
    resamples: int = RESAMPLES,
    advance: Callable[[int], None] | None = None,
    whose: str = "",
) -> TranslationEvaluation:
    """Translate every source of a split once and compare.

    Args:
        translator: the model's training mode is restored afterwards.
        pairs: the split, not empty.
        batch_size: sentences at once; the result does not depend on it beyond rounding.
        precision: of the loss; translations are found in float32.
        resamples: of the bootstrap; 0 for no intervals.
        advance: told how many more sentences are translated.
        whose: what messages say of where the pairs are from, such as " of data.test".

    Returns:
        The evaluation; the loss is that of training, on the references. With several processes each does all
        of it, so that it is the same on all.

    Raises:
        PetkitError: a sentence is too long, or sacrebleu is missing.
    """
    model, dataset = translator.model, PairDataset(pairs, translator.vocabulary)
    dataset.check_positions(model.config.model.max_positions, whose)
    device = next(model.parameters()).device
    own = evaluate(model, dataset, training_step, batch_size=batch_size, device=device, precision=precision)
    was_training = model.training
    model.eval()
    started = time.perf_counter()
    try:
        found = translator.translate([pair.source for pair in pairs], batch_size, advance)
    finally:
        model.train(was_training)
    rate = len(pairs) / (time.perf_counter() - started)
    texts = translator.texts(found)
    scores = corpus_scores(texts, [pair.target for pair in pairs], resamples)
    return TranslationEvaluation(
        n=len(pairs),
        loss=own.loss,
        examples_per_second=rate,
        bleu=scores.bleu,
        bleu_interval=scores.bleu_interval,
        chrf=scores.chrf,
        chrf_interval=scores.chrf_interval,
        signature=scores.signature,
        translations=tuple(texts),
    )
