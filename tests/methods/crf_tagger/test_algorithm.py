import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.methods.crf_tagger.algorithm import cross_entropy, resampled_sums, span_scores, word_accuracy
from tests.reference import spans as reference
from tests.reference.tolerance import SUM

TAGS = st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y", "L-X", "U-Y"])
PAIRS = st.lists(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(st.lists(TAGS, min_size=n, max_size=n), st.lists(TAGS, min_size=n, max_size=n))
    ),
    min_size=1,
    max_size=6,
)


@given(PAIRS)
def test_scores_are_those_of_the_definition(pairs):
    gold, predicted = zip(*pairs, strict=True)
    found = span_scores(gold, predicted, draws=10)
    measured = found.precision.value, found.recall.value, found.f1.value
    assert measured == pytest.approx(reference.scores(gold, predicted))
    # Types partition the spans.
    assert sum(own["gold"] for own in found.per_type.values()) == found.gold


def test_scores_by_hand():
    gold = [["B-X", "I-X", "O"], ["B-Y", "O", "B-X"]]
    predicted = [["B-X", "I-X", "O"], ["B-X", "O", "O"]]
    found = span_scores(gold, predicted)
    assert (found.correct, found.predicted, found.gold) == (1, 2, 3)
    assert (found.precision.value, found.recall.value) == (0.5, pytest.approx(1 / 3))
    assert found.f1.value == pytest.approx(0.4)
    assert found.per_type["Y"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "gold": 1}


def test_no_spans_at_all_score_0():
    found = span_scores([["O"]], [["O"]])
    assert (found.f1.value, found.per_type) == (0.0, {})


def test_one_sentence_has_no_interval():
    """All its resamples are itself: they would give an interval of one point."""
    found = span_scores([["B-X", "O"]], [["B-X", "O"]])
    assert {found.f1.interval, found.precision.interval, found.recall.interval} == {None}
    accuracy = word_accuracy([["B-X", "O"]], [["B-X", "B-X"]])
    assert accuracy.payload() == {"value": 0.5, "interval": None}
    assert word_accuracy([["O"]] * 2, [["O"]] * 2).interval == (1.0, 1.0)


def test_the_interval_of_single_words_is_about_that_of_a_proportion():
    n, p = 400, 0.9
    gold = [["A"]] * n
    predicted = [["A" if row < p * n else "B"] for row in range(n)]
    found = word_accuracy(gold, predicted, draws=4000)
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert found.value == pytest.approx(p)
    # The ends of 4,000 draws lie within a tenth of the half width, and steps are of 1 / n.
    low, high = found.interval
    assert low == pytest.approx(p - half, abs=0.1 * half + 1 / n)
    assert high == pytest.approx(p + half, abs=0.1 * half + 1 / n)


def test_the_interval_is_the_same_every_time():
    gold, predicted = [["B-X", "O"], ["O", "B-X"]], [["B-X", "O"], ["O", "O"]]
    assert span_scores(gold, predicted) == span_scores(gold, predicted)


def test_resamples_have_as_many_sentences():
    counts = np.stack([np.ones(7, np.int64), np.arange(7)], 1)
    sums = resampled_sums(counts, 0, 250)
    assert sums.shape == (250, 2)
    assert set(sums[:, 0]) == {7}
    # The mean of 250 means of 7 draws from 0..6: standard error 2 / sqrt(1750) = 0.05.
    assert sums[:, 1].mean() / 7 == pytest.approx(3, abs=0.2)


def test_tags_of_other_sentences_are_refused():
    with pytest.raises(InputError, match="sentence 0 must have 2 predicted tags, got 1"):
        span_scores([["O", "O"]], [["O"]])
    with pytest.raises(InputError, match="tags of the same sentences, got 0 and 0"):
        word_accuracy([], [])


def test_cross_entropy_counts_words_alone():
    emissions = np.random.default_rng(0).normal(size=(2, 3, 4))
    tags, mask = np.array([[0, 3, 1], [2, -100, -100]]), np.array([[1, 1, 1], [1, 0, 0]], bool)
    logs = emissions - np.log(np.exp(emissions).sum(-1, keepdims=True))
    wanted = -sum(logs[b, t, tags[b, t]] for b in range(2) for t in range(3) if mask[b, t])
    found = cross_entropy(torch.tensor(emissions), torch.tensor(tags), torch.tensor(mask))
    assert float(found) == pytest.approx(wanted, rel=SUM)
