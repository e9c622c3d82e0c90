from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError, PetkitError
from petkit.rollout.entropy import EntropyTracker, bias_summary, entropy_from_top, pooled_bias
from tests.reference import token_statistics as reference

VOCAB, EOS, PAD = 40, 1, 0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=VOCAB,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return transformers.LlamaForCausalLM(config).eval()


def generate(model, prompts, tracker, tokens=12, **options):
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, **options}
    written = model.generate(
        ids, attention_mask=mask, max_new_tokens=tokens, logits_processor=[tracker], **options
    )
    return written[:, longest:].tolist()


@torch.no_grad()
def judge(model, prompt, written):
    """Entropy of every token drawn, by a forward pass over the whole sequence in float64."""
    logits = model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1]
    return reference.statistics(logits.double().numpy())


def test_records_what_the_model_drew_from(model):
    tracker, prompt = EntropyTracker(EOS), [5, 9, 3]
    written = generate(model, [prompt], tracker)[0]
    (found,) = tracker.trajectories()
    expected = judge(model, prompt, written)
    assert len(found) == len(written)
    for name in ("entropy", "varentropy", "max_prob"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=0, atol=1e-5)


def test_ragged_prompts_give_what_each_gives_alone(model):
    prompts = [[5, 9, 3], [7], [2, 2, 8, 4, 6]]
    together = EntropyTracker(EOS)
    generate(model, prompts, together)
    for prompt, found in zip(prompts, together.trajectories(), strict=True):
        alone = EntropyTracker(EOS)
        generate(model, [prompt], alone)
        assert found.entropy == pytest.approx(alone.trajectories()[0].entropy, abs=1e-5)


def test_nothing_is_recorded_behind_the_end():
    tracker = EntropyTracker({EOS, 3})
    flat = torch.zeros(3, VOCAB)
    last = [[9, 9, 9], [EOS, 9, 9], [PAD, 3, 9], [PAD, PAD, 9]]
    ids = torch.full((3, 2), EOS)
    for step in range(4):
        if step:
            ids = torch.cat([ids, torch.tensor([last[step]]).T], dim=1)
        assert tracker(ids, flat) is flat
    # A prompt that ends with EOS ends nothing; the token that ends a sequence counts.
    assert [len(found) for found in tracker.trajectories()] == [1, 2, 4]
    assert tracker.trajectories()[0].entropy[0] == pytest.approx(math.log(VOCAB), abs=1e-6)


def test_only_the_first_tokens(model):
    tracker = EntropyTracker(EOS, max_tokens=4)
    generate(model, [[5, 9], [3]], tracker)
    assert [len(found) for found in tracker.trajectories()] == [4, 4]


def test_temperature_belongs_to_the_record_and_not_to_the_model(model):
    plain, cold = EntropyTracker(EOS), EntropyTracker(EOS, temperature=0.5)
    assert generate(model, [[5, 9]], plain) == generate(model, [[5, 9]], cold)
    assert cold.trajectories()[0].entropy[0] < plain.trajectories()[0].entropy[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_a_distribution_is_named(bad):
    tracker = EntropyTracker()
    tracker(torch.zeros(2, 1), torch.zeros(2, 5))
    scores = torch.zeros(2, 5)
    scores[1, 3] = bad
    with pytest.raises(PetkitError, match=r"the logits of row 1 must be finite .* at its token 1"):
        tracker(torch.zeros(2, 2), scores)


def test_another_batch_needs_another_tracker():
    tracker = EntropyTracker()
    tracker(torch.zeros(2, 1), torch.zeros(2, 5))
    with pytest.raises(InputError, match="expected 2 rows, got 3; make a new one"):
        tracker(torch.zeros(3, 1), torch.zeros(3, 5))


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=30), st.integers(1, 30))
def test_the_truth_lies_within_the_bound(values, k):
    log_p = reference.log_softmax(np.array([values]))[0]
    top = sorted(log_p, reverse=True)[:k]
    truth = float(-(np.exp(log_p) * log_p).sum())
    found = entropy_from_top(list(top), len(values))
    assert found.estimate - 1e-9 <= truth <= found.estimate + found.bias + 1e-9


def test_the_mean_bound_is_over_tokens():
    rows = [[0.5, 0.1], [0.2] * 8]
    pooled = pooled_bias(list(map(bias_summary, rows)), list(map(len, rows)))
    assert pooled == pytest.approx(bias_summary([value for row in rows for value in row]))
    assert pooled_bias([{"largest": 0.0, "mean": 0.0}], [0]) == {"largest": 0.0, "mean": 0.0}


def test_a_whole_vocabulary_leaves_no_doubt():
    assert entropy_from_top([math.log(0.5)] * 2, 2).bias == 0
    assert entropy_from_top([math.log(0.5)] * 2, 2).estimate == pytest.approx(math.log(2))
    assert entropy_from_top([0.0, -math.inf], 9) == entropy_from_top([0.0], 9)


@pytest.mark.parametrize(
    ("top", "vocab", "message"),
    [
        ([], 5, "must hold log-probabilities"),
        ([0.5], 5, r"must hold log-probabilities \(at most 0\), got \[0.5\]"),
        ([math.nan], 5, "must hold log-probabilities"),
        ([-1.0, -1.0, -2.0], 2, "vocab must be at least 3, got 2"),
        ([-0.1, -0.1], 5, "must be of different tokens: their probabilities add up to 1.8"),
    ],
)
def test_refusals(top, vocab, message):
    with pytest.raises(InputError, match=message):
        entropy_from_top(top, vocab)


def test_a_tracker_serves_one_call_alone():
    tracker = EntropyTracker()
    logits = torch.zeros(2, 5)
    tracker(torch.zeros(2, 3, dtype=torch.int64), logits)
    tracker(torch.zeros(2, 4, dtype=torch.int64), logits)
    with pytest.raises(InputError, match="serves one call of generate: expected 5 tokens a row, got 3"):
        tracker(torch.zeros(2, 3, dtype=torch.int64), logits)


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 12])
def test_beam_search_is_refused(model, beams, tokens):
    with pytest.raises(InputError, match=r"beam search, .* cannot be tracked; set num_beams=1"):
        generate(model, [[5, 9], [3]], EntropyTracker(EOS), tokens, num_beams=beams)


def test_rows_that_change_places_are_refused():
    tracker, logits = EntropyTracker(), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[7, 1], [7, 2], [7, 3]])
    tracker(ids, logits)
    # In the place where the last step's tokens were.
    ids[:] = ids[[0, 2, 1]]
    with pytest.raises(InputError, match=r"every row must go on from .*, row 1 does not: beam search"):
        tracker(torch.cat([ids, ids[:, :1]], dim=1), logits)


def test_samples_of_one_prompt_are_no_beams(model):
    torch.manual_seed(0)
    tracker = EntropyTracker(EOS)
    generate(model, [[5, 9]], tracker, do_sample=True, num_return_sequences=3)
    assert len(tracker.trajectories()) == 3


def test_no_token_may_end_a_text(model):
    tracker = EntropyTracker(None)
    ids = torch.tensor([[EOS], [3]])
    for step in range(3):
        tracker(torch.cat([ids] * (step + 1), dim=1), torch.zeros(2, VOCAB))
    assert [len(one) for one in tracker.trajectories()] == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, or None for all, got 0"),
        ({"max_tokens": -1}, "max_tokens must be at least 1, or None for all, got -1"),
        ({"temperature": 0}, r"temperature must lie between 1e-30 and 1e\+30, got 0"),
        ({"temperature": math.nan}, r"temperature must lie between 1e-30 and 1e\+30, got nan"),
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
    ],
)
def test_a_tracker_of_nothing_is_refused_when_it_is_made(options, message):
    with pytest.raises(InputError, match=message):
        EntropyTracker(**options)


def test_ends_may_be_a_tensor():
    tracker = EntropyTracker(torch.tensor([3]))
    tracker(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 5))
    tracker(torch.tensor([[0, 3]]), torch.zeros(1, 5))
    assert len(tracker.trajectories()[0]) == 1
