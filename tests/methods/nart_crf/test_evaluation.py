import sys

import pytest
from sacrebleu import corpus_bleu, corpus_chrf

from petkit.errors import InputError, MissingError
from petkit.methods.nart_crf.evaluation import check_sacrebleu, corpus_scores, evaluate_translator
from petkit.methods.nart_crf.splits import load_splits
from petkit.methods.nart_crf.stored import translator_of
from petkit.methods.nart_crf.timing import Latency, one_by_one
from tests.methods.nart_crf import tiny

SAID = ["the dog sees the old cat today", "a bird", "the house is red and green"]
MEANT = ["the dog sees the cat today", "the bird", "the house is red and green"]


def test_scores_are_sacrebleus():
    found = corpus_scores(SAID, MEANT, 100)
    assert found.bleu == pytest.approx(corpus_bleu(SAID, [MEANT]).score)
    assert found.chrf == pytest.approx(corpus_chrf(SAID, [MEANT]).score)
    for value, (low, high) in ((found.bleu, found.bleu_interval), (found.chrf, found.chrf_interval)):
        assert 0 <= low < value < high <= 100
    assert "|bs:100|seed:12345|" in found.signature
    assert "tok:13a" in found.signature
    assert corpus_scores(SAID, MEANT, 100) == found
    assert corpus_scores(MEANT, MEANT, 0).bleu == pytest.approx(100)


def test_an_interval_holds_95_of_100_resamples():
    # Of two sentences a quarter of the resamples is twice the right one, and a quarter twice the wrong one.
    found = corpus_scores([MEANT[0], "no"], [MEANT[0], "ja"], 200)
    assert (found.bleu_interval, found.chrf_interval) == ((0, pytest.approx(100)), (0, pytest.approx(100)))


def test_intervals_need_resamples_and_sentences():
    assert corpus_scores(SAID, MEANT, 0).bleu_interval is None
    assert corpus_scores(SAID[:1], MEANT[:1]).chrf_interval is None
    for said, meant in ((SAID, MEANT[:2]), ([], [])):
        with pytest.raises(InputError, match="scores need a reference each, got"):
            corpus_scores(said, meant)


def test_sacrebleu_is_asked_for_by_its_extra(monkeypatch):
    check_sacrebleu()
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MissingError, match=r'BLEU needs sacrebleu: pip install "petkit\[nlp\]"'):
        check_sacrebleu()


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_split_is_translated_and_compared(loaded, name):
    translator, pairs = translator_of(loaded[name]), load_splits(tiny.recipe()).test
    translator.model.train()
    counted = []
    found = evaluate_translator(translator, pairs, batch_size=4, resamples=0, advance=counted.append)
    assert translator.model.training
    translator.model.eval()
    assert (found.n, sum(counted)) == (10, 10)
    sources = [pair.source for pair in pairs]
    assert list(found.translations) == translator.texts(translator.translate(sources, 1))
    assert found.bleu == corpus_scores(found.translations, [pair.target for pair in pairs], 0).bleu
    assert found.score == found.bleu
    assert found.record() == {"eval_loss": found.loss, "eval_bleu": found.bleu, "eval_chrf": found.chrf}
    again = evaluate_translator(translator, pairs, batch_size=10, resamples=0)
    assert again.loss == pytest.approx(found.loss, rel=1e-5)
    payload = found.payload()
    assert payload["bleu"] == {"value": found.bleu, "interval": None}
    assert (payload["n"], payload["unit"]) == (10, "sentences")


def test_latencies_are_milliseconds():
    found = Latency.of([0.001 * n for n in range(1, 102)])
    assert (found.median, found.p90, found.p99, found.mean) == pytest.approx((51, 91, 100, 51))


def test_sentences_one_by_one_are_translated_as_together(loaded):
    translator = translator_of(loaded["student"])
    found, times = one_by_one(translator, tiny.SOURCES)
    assert [one.ids for one in found] == [one.ids for one in translator.translate(tiny.SOURCES, 6)]
    assert 0 < times.median <= times.p90 <= times.p99
