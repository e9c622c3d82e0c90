"""Answers about token ids that lack something are refused by the request's number, and none is mended."""

from __future__ import annotations

import math

import pytest
import torch

from petkit.errors import InputError
from petkit.rollout.connection import ServerGone
from petkit.rollout.sampling import sample
from tests.rollout.fault_server import serving
from tests.rollout.test_sampling import RAGGED, load
from tests.rollout.token_stub import STUBS, drawing, sampler, sglang, vllm
from tests.serving.text_models import save_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(str(save_llama(tmp_path_factory.mktemp("token_servers") / "llama")))


@pytest.fixture
def server():
    with serving() as found:
        yield found


def test_ids_may_be_given_as_names_of_tokens(server, model):
    def older(found):
        choice = found["choices"][0]
        choice["logprobs"] = {"tokens": [f"token_id:{token}" for token in choice.pop("token_ids")]}
        del choice["prompt_token_ids"]
        return found

    server.play(vllm(model, older))
    assert sampler(server).sample(RAGGED, range(5), drawing()) == sample(
        model, RAGGED, range(5), drawing(), 0
    )


@pytest.mark.parametrize("sign", ["-Infinity", "-inf", None, -math.inf, -9999.0])
def test_ways_to_write_minus_infinity(server, model, sign):
    def write(found):
        entries = found["choices"][0]["prompt_logprobs"][-1]
        least = min(entries, key=lambda token: entries[token]["logprob"])
        entries[least]["logprob"] = sign
        return found

    server.play(vllm(model, write))
    with torch.no_grad():
        row = model(input_ids=torch.tensor([[4]])).logits[0, -1]
    (found,) = sampler(server).score([[4]], [[int(row.argmin())]], 3)
    assert found.log_probs.tolist() == [-math.inf]


def changed(kind, **fields):
    """Put other fields into the part of an answer that matters."""

    def spoil(found):
        part = found["choices"][0] if kind == "vllm" else found["meta_info"]
        part.update(fields)
        return found

    return spoil


@pytest.mark.parametrize(
    ("kind", "fields", "error", "message"),
    [
        (
            "vllm",
            {"token_ids": None},
            InputError,
            "gives no ids of the tokens it drew, and tokenising its text anew",
        ),
        ("vllm", {"token_ids": None, "logprobs": {"tokens": ["a"]}}, InputError, "vLLM 0.10.2 or later"),
        (
            "vllm",
            {"token_ids": [99]},
            InputError,
            "expected ids from 0 to 14, got 99: the server has another",
        ),
        ("vllm", {"token_ids": [-1]}, InputError, "expected ids from 0 to 14, got -1"),
        ("vllm", {"token_ids": ["4"]}, ServerGone, "expected an answer of the protocol's shape"),
        ("vllm", {"token_ids": [4] * 7}, InputError, "expected 1 to 6 tokens, got 7"),
        ("vllm", {"token_ids": []}, InputError, "expected 1 to 6 tokens, got 0"),
        (
            "vllm",
            {"token_ids": [4, 3, 5]},
            InputError,
            "expected nothing after the end token 3, got 1 tokens",
        ),
        (
            "vllm",
            {"token_ids": [4], "finish_reason": "stop", "stop_reason": None},
            InputError,
            r"end token \(\[3\]\), got 4",
        ),
        ("vllm", {"finish_reason": "abort"}, ServerGone, "ended by stop or length, got 'abort'"),
        (
            "vllm",
            {"prompt_token_ids": [1, 4, 5]},
            InputError,
            "expected the prompt's ids back as they were sent",
        ),
        ("sglang", {"output_token_logprobs": None}, InputError, "gives no ids of the tokens it drew"),
        (
            "sglang",
            {"output_token_logprobs": [[-1.0, 99, None]]},
            InputError,
            "expected ids from 0 to 14, got 99",
        ),
        ("sglang", {"output_token_logprobs": [[-1.0]]}, ServerGone, "the protocol's shape"),
        ("sglang", {"finish_reason": {"type": "abort"}}, ServerGone, "got 'abort'"),
        ("sglang", {"finish_reason": None}, ServerGone, "the protocol's shape"),
    ],
)
def test_bad_completions_are_refused(server, model, kind, fields, error, message):
    server.play(STUBS[kind](model), STUBS[kind](model, changed(kind, **fields)))
    with pytest.raises(error, match=message) as caught:
        sampler(server, kind, max_in_flight=1).sample([[4, 5]] * 2, [3, 4], drawing())
    assert str(caught.value).startswith("request 1: ")
    assert type(caught.value) is error
    assert len(server.requests) == (5 if error is ServerGone else 2)


def row(kind, edit):
    """Edit the last position's log-probabilities."""

    def spoil(found):
        if kind == "vllm":
            listed = found["choices"][0]["prompt_logprobs"]
            listed[-1] = edit(listed[-1])
        else:
            meta = found["meta_info"]
            meta["input_token_logprobs"][-1], meta["input_top_logprobs"][-1] = edit(
                meta["input_token_logprobs"][-1], meta["input_top_logprobs"][-1]
            )
        return found

    return spoil


def own_value(value):
    """vLLM's entries with another value for the given token, which is 5."""
    return row("vllm", lambda entries: {**entries, "5": {"logprob": value}})


def top_value(value):
    """The likeliest token gets another value."""

    def edit(entries):
        first = min((key for key in entries if key != "5"), key=lambda key: -entries[key]["logprob"])
        return {**entries, first: {"logprob": value}}

    return row("vllm", edit)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            row("vllm", lambda entries: dict(list(entries.items())[:2])),
            "expected 3 log-probabilities at place 1 .* got 2: start vLLM with --max-logprobs 3 or more",
        ),
        (own_value(math.nan), "expected log-probabilities of at most 0 at place 1 of the response, got nan"),
        (own_value("NaN"), "of at most 0 .* got 'NaN'"),
        (own_value(True), "of at most 0 .* got True"),
        (own_value(0.001), r"of at most 0 .* got 0\.001"),
        (own_value(math.inf), "of at most 0 .* got inf"),
        (own_value(10**400), "of at most 0 .* got 1000"),
        (top_value(math.nan), "of at most 0 .* got nan"),
        (top_value(-math.inf), "expected 3 tokens that are possible .* got some of -inf"),
        (row("vllm", lambda entries: {key: {"logprob": -0.1} for key in entries}), "that sum to at most 1"),
        (
            row("vllm", lambda entries: {**entries, "15": {"logprob": -1.0}}),
            "expected ids from 0 to 14 .* got 15",
        ),
        (
            row("vllm", lambda entries: {**entries, "-2": {"logprob": -1.0}}),
            "expected ids from 0 to 14 .* got -2",
        ),
        (
            row(
                "vllm",
                lambda entries: {"6": {"logprob": -1.0}, "7": {"logprob": -2.0}, "8": {"logprob": -2.0}},
            ),
            r"expected the log-probability of the token 5 at place 1 .* got those of \[6, 7, 8\]",
        ),
        (
            lambda found: changed("vllm", prompt_logprobs=found["choices"][0]["prompt_logprobs"][1:])(found),
            "expected log-probabilities at 4 positions, got 3 .*--no-enable-prefix-caching",
        ),
        (changed("vllm", prompt_logprobs=None), "gives no prompt_logprobs: serve the model with vLLM"),
        (changed("vllm", prompt_token_ids=[1, 4, 4, 4, 5]), "expected the prompt's ids back"),
    ],
)
def test_bad_log_probabilities_are_refused(server, model, spoil, message):
    server.play(vllm(model), vllm(model, spoil))
    with pytest.raises(InputError, match=message) as caught:
        sampler(server, max_in_flight=1).score([[4, 4]] * 2, [[4, 5]] * 2, 3)
    assert str(caught.value).startswith("request 1: ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            row("sglang", lambda own, top: (own, top[:2])),
            "expected 3 log-probabilities at place 1 .* got 2: ask for fewer",
        ),
        (
            row("sglang", lambda own, top: ([own[0], 6, None], top)),
            "expected the token 5 at place 1 .* got 6",
        ),
        (
            row("sglang", lambda own, top: ([own[0], 0, None], top)),
            "expected the token 5 at place 1 .* got 0",
        ),
        (row("sglang", lambda own, top: (own, [top[0]] * 3)), "expected different tokens at place 1"),
        (row("sglang", lambda own, top: (own, [[-1.0, 99, None], *top[1:]])), "expected ids from 0 to 14"),
        (row("sglang", lambda own, top: ([math.nan, 5, None], top)), "of at most 0 .* got nan"),
        (row("sglang", lambda own, top: ([1.0, 5, None], top)), r"of at most 0 .* got 1\.0"),
        (row("sglang", lambda own, top: (own, [[None, one[1], None] for one in top])), "got some of -inf"),
        (
            lambda found: changed(
                "sglang", input_token_logprobs=found["meta_info"]["input_token_logprobs"][1:]
            )(found),
            "expected log-probabilities at 2 positions, got 1",
        ),
        (
            lambda found: changed("sglang", input_top_logprobs=found["meta_info"]["input_top_logprobs"][1:])(
                found
            ),
            "expected log-probabilities at 2 positions, got 1",
        ),
        (changed("sglang", input_token_logprobs=None), "gives no input_token_logprobs"),
        (
            changed("sglang", input_top_logprobs=None),
            "expected 3 log-probabilities at each position, got none",
        ),
    ],
)
def test_bad_log_probabilities_of_sglang_are_refused(server, model, spoil, message):
    server.play(sglang(model, spoil))
    with pytest.raises(InputError, match=message):
        sampler(server, "sglang").score([[4, 4]], [[4, 5]], 3)


@pytest.mark.parametrize(
    "spoil",
    [
        row("vllm", lambda entries: [3]),
        row("vllm", lambda entries: None),
        row("vllm", lambda entries: {"x": {"logprob": -1.0}}),
        row("vllm", lambda entries: {"5": {}}),
        row("vllm", lambda entries: {"5": -1.0}),
    ],
)
def test_log_probabilities_of_another_shape(server, model, spoil):
    server.play(vllm(model, spoil))
    with pytest.raises(ServerGone, match="the protocol's shape"):
        sampler(server).score([[4, 4]], [[4, 5]], 3)


def test_an_impossible_token_among_the_likeliest_is_not_made_up_for(server, model):
    """The given token, which comes on top of those asked for, must not take its place."""
    server.play(vllm(model, top_value(-math.inf)))
    with pytest.raises(InputError, match="expected 3 tokens that are possible"):
        sampler(server).score([[4, 4]], [[4, 5]], 3)


def test_the_last_id_of_a_vocabulary_may_come_as_0(server, model):
    server.play(sglang(model), vllm(model))
    (found,) = sampler(server, "sglang").score([[4]], [[14, 5]], 2)
    (wanted,) = sampler(server, "vllm").score([[4]], [[14, 5]], 2)
    torch.testing.assert_close(found.log_probs, wanted.log_probs)


@pytest.mark.parametrize("kind", sorted(STUBS))
def test_log_probabilities_of_draws_are_kept_where_they_are_asked_for(server, model, kind):
    server.play(STUBS[kind](model))
    plain = sampler(server, kind).sample(RAGGED, range(5), drawing())
    told = sampler(server, kind).sample(
        RAGGED, range(5), drawing(), [[], [5], [6, 7], [], [8]], log_probs=True
    )
    assert all(one.log_probs == () for one in plain)
    for one in told:
        with torch.no_grad():
            rows = model(input_ids=torch.tensor([[*one.prompt, *one.tokens]])).logits[0].log_softmax(-1)
        places = range(one.prefix, len(one.tokens))
        expected = [float(rows[len(one.prompt) + place - 1, one.tokens[place]]) for place in places]
        assert one.log_probs == pytest.approx(expected, abs=1e-5)


def fewer(found):
    if "choices" in found:
        found["choices"][0]["logprobs"]["token_logprobs"].pop()
    return found


def none_at_all(found):
    if "choices" in found:
        found["choices"][0]["logprobs"] = None
    return found


def lifted(found):
    if "choices" in found:
        found["choices"][0]["logprobs"]["token_logprobs"][0] = 0.5
    else:
        found["meta_info"]["output_token_logprobs"][0][0] = 0.5
    return found


def impossible(found):
    if "choices" in found:
        found["choices"][0]["logprobs"]["token_logprobs"][0] = -9999.0
    else:
        found["meta_info"]["output_token_logprobs"][0][0] = None
    return found


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("vllm", fewer, "request 0: expected log-probabilities of 6 tokens that were drawn, got 5"),
        ("vllm", none_at_all, "request 0: expected log-probabilities of 6 tokens that were drawn, got 0"),
        ("vllm", lifted, "request 0: expected log-probabilities of at most 0 at place 0, got 0.5"),
        ("sglang", lifted, "request 0: expected log-probabilities of at most 0 at place 0, got 0.5"),
        ("vllm", impossible, "request 0: expected tokens that are possible, got one of -inf at place 0"),
        ("sglang", impossible, "request 0: expected tokens that are possible, got one of -inf at place 0"),
    ],
)
def test_log_probabilities_of_draws_must_be_some(server, model, kind, spoil, message):
    server.play(STUBS[kind](model, spoil))
    assert len(sample(model, [[4]], [0], drawing(), 0)[0].tokens) == 6
    with pytest.raises(InputError, match=message):
        sampler(server, kind).sample([[4]], [0], drawing(), log_probs=True)
