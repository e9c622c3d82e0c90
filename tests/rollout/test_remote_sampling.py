"""A served model gives what the same model gives here, and a server that goes wrong is told of in words."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest
import torch
from pydantic import ValidationError

from petkit.errors import ConfigError, InputError
from petkit.rollout.config import ConnectionConfig, TokenServerConfig
from petkit.rollout.connection import Refused, ServerGone
from petkit.rollout.endpoint import Endpoint
from petkit.rollout.sampling import sample
from petkit.rollout.stops import Stops
from tests.rollout.fault_server import hold, refuse, serving, stream
from tests.rollout.test_sampling import RAGGED, load
from tests.rollout.token_stub import (
    END,
    STUBS,
    VOCAB,
    after,
    answering,
    cut,
    drawing,
    drop,
    sampler,
    spoken,
    top_of,
    vllm,
)
from tests.serving.text_models import save_llama

RESPONSES = [[5, 6, 14], [4], [7, 7, 7, 7, 3], [13, 12], [9, 8, 7, 6]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(str(save_llama(tmp_path_factory.mktemp("remote_sampling") / "llama")))


@pytest.fixture
def server():
    with serving() as found:
        yield found


@pytest.fixture(params=sorted(STUBS))
def kind(request):
    return request.param


def test_completions_are_those_of_the_model_here(server, model, kind):
    server.play(STUBS[kind](model))
    own = drawing(8, temperature=1.4, top_k=9, top_p=0.9)
    prefixes = [[], [5], [6, 7], [], [8]]
    told = []
    found = sampler(server, kind).sample(RAGGED, range(5), own, prefixes, advance=told.append)
    assert found == sample(model, RAGGED, range(5), own, 0, prefixes=prefixes)
    assert any(row.finished for row in found)
    assert sum(told) == 5
    best = sampler(server, kind).sample(RAGGED, range(5), own, greedy=True)
    assert best == sample(model, RAGGED, range(5), own, 0, greedy=True)
    assert best != found


def test_stops_are_sent_and_their_tokens_kept(server, model, kind):
    server.play(STUBS[kind](model))
    text = spoken(sample(model, RAGGED, range(5), drawing(8), 0)[0].tokens[1:2])
    own = drawing(8, stop=(text,))
    found = sampler(server, kind).sample(RAGGED, range(5), own)
    assert found == sample(model, RAGGED, range(5), own, 0, Stops((text,), spoken))
    assert found[0].stopped


def test_every_setting_that_changes_draws_is_sent(server, model):
    server.play(vllm(model))
    sampler(server).sample([[4, 5]], [7], drawing(6, temperature=0.5, top_p=0.9), [[6]])
    sampler(server).sample([[4]], [8], drawing(6), greedy=True)
    first, second = server.requests
    assert first == {
        "model": "m",
        "prompt": [4, 5, 6],
        "max_tokens": 5,
        "seed": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        # All tokens, and nothing that the model's author likes.
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [END],
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": 0,
    }
    assert (second["temperature"], second["top_p"], second["top_k"]) == (0.0, 1.0, -1)


@pytest.mark.parametrize("top_k", [0, 1, 4, VOCAB])
def test_scores_are_those_of_the_model_here(server, model, kind, top_k):
    server.play(STUBS[kind](model))
    found = sampler(server, kind).score(RAGGED, RESPONSES, top_k)
    for prompt, response, scores in zip(RAGGED, RESPONSES, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        wanted = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
        ids = torch.tensor(response)
        torch.testing.assert_close(scores.log_probs, wanted.gather(-1, ids[:, None])[:, 0], atol=1e-5, rtol=0)
        assert scores.top_ids.tolist() == [top_of(row, top_k) for row in wanted]
        assert scores.top_ids.dtype == torch.int64
        assert scores.top_log_probs.shape == (len(response), top_k)
        torch.testing.assert_close(scores.top_log_probs, wanted.gather(-1, scores.top_ids), atol=1e-5, rtol=0)


def test_an_impossible_token_stays_impossible(server, model, kind):
    forbidden = 11

    def forbid(module, args, output):
        output[..., forbidden] = -math.inf

    handle = model.lm_head.register_forward_hook(forbid)
    try:
        server.play(STUBS[kind](model))
        (found,) = sampler(server, kind).score([[4]], [[5, forbidden, 6]], 3)
    finally:
        handle.remove()
    assert found.log_probs[1] == -math.inf
    assert found.log_probs.isfinite().tolist() == [True, False, True]
    assert found.top_log_probs.isfinite().all()


def test_results_come_in_order_with_so_many_in_flight(server, model, kind):
    fast = STUBS[kind](model)
    together = threading.Barrier(3)
    too_many, seen = threading.Event(), []

    def held(handler):
        """Answer when three requests are here, and a fourth had time to come."""
        together.wait(30)
        seen.append(too_many.wait(0.1))
        together.wait(30)
        fast(handler)

    def fourth(handler):
        too_many.set()
        fast(handler)

    server.play(after(0.1, held), held, held, fourth, after(0.05, fast), fast, after(0.02, fast))
    found = sampler(server, kind, max_in_flight=3).score(RAGGED * 4, RESPONSES * 4, 1)
    assert seen == [False] * 3
    assert too_many.is_set()
    again = sampler(server, kind, max_in_flight=1).score(RAGGED, RESPONSES, 1)
    for place, scores in enumerate(found):
        assert torch.equal(scores.log_probs, again[place % 5].log_probs)


def test_a_server_that_stumbles_is_asked_again(server, model, kind):
    waits = []
    right = STUBS[kind](model)
    server.play(drop, refuse(429, Retry_After="7"), cut(right), refuse(503), right)
    found = sampler(server, kind, waits, attempts=5).sample([[4, 5]], [3], drawing())
    assert found == sample(model, [[4, 5]], [3], drawing(), 0)
    assert waits == [0.5, 7, 2.0, 4.0]
    assert all(body == server.requests[0] for body in server.requests)


def test_silence_is_waited_for_only_so_long(server, model):
    right = vllm(model)
    server.play(hold(), right)
    assert len(sampler(server, read_timeout=0.3).sample([[4]], [0], drawing())) == 1
    server.play(hold())
    begun = time.monotonic()
    with pytest.raises(ServerGone, match=r"request 0: .* no whole answer within 0\.4 s \(rollout\.timeout\)"):
        sampler(server, timeout=0.4).sample([[4]], [0], drawing())
    with pytest.raises(
        ServerGone, match=r"nothing came for 0\.1 s \(rollout\.read_timeout\), also when asked 2"
    ):
        sampler(server, read_timeout=0.1, attempts=2).sample([[4]], [0], drawing())
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (drop, "the stream ended in the middle of an answer|no server answers"),
        (refuse(503, "loading"), r"answers 503, also when asked 2 times: try again later \(loading\)"),
        (refuse(429, "busy"), r"answers 429, also when asked 2 times: try again later \(busy\)"),
    ],
)
def test_a_server_that_goes_says_how_far_it_came(server, model, step, message):
    right = vllm(model)
    server.play(right, right, right, step)
    with pytest.raises(ServerGone, match=message) as caught:
        sampler(server, attempts=2, max_in_flight=1).sample(RAGGED, range(5), drawing())
    assert str(caught.value).startswith("request 3: ")
    assert str(caught.value).endswith("(3 of 5 requests are done)")
    assert "\n" not in str(caught.value)
    # Nothing is lost: what came can be kept, and the rest asked for later.
    kept = caught.value.results
    assert sorted(kept) == [0, 1, 2]
    server.play(right)
    rest = sampler(server).sample(RAGGED[3:], [3, 4], drawing())
    assert [*kept.values(), *rest] == sample(model, RAGGED, range(5), drawing(), 0)


def test_no_server(server):
    gone = sampler(server, attempts=2)
    gone.endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    with pytest.raises(ServerGone, match=r"no server answers at .*\(0 of 1 requests are done\)"):
        gone.score([[4]], [[5]])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            answering(lambda body, path: b'{"choices": [{"token_ids": [4, '),
            r"request 0: http://.*: expected JSON, got 31 bytes that end in b'.*', also when asked \d times",
        ),
        (answering(lambda body, path: b""), "expected JSON, got 0 bytes"),
        (answering(lambda body, path: b"\xff\xfe%%"), "expected JSON"),
        (answering(lambda body, path: b"[" * 100_000), "expected JSON"),
        (answering(lambda body, path: []), r"the protocol's shape, got \[\]"),
        (answering(lambda body, path: {"choices": []}), "the protocol's shape"),
        (answering(lambda body, path: {"choices": [3]}), "the protocol's shape"),
        (answering(lambda body, path: {"meta_info": 3}), "the protocol's shape"),
        (stream(b"data: {}\n\n"), "expected JSON"),
    ],
)
def test_garbled_answers_are_asked_for_anew_and_then_refused(server, kind, step, message):
    server.play(step)
    with pytest.raises(ServerGone, match=message):
        sampler(server, kind).sample([[4]], [0], drawing())
    assert len(server.requests) == ConnectionConfig().attempts
    with pytest.raises(ServerGone, match=message):
        sampler(server, kind).score([[4]], [[5]], 2)


def test_a_cap_on_log_probabilities_names_the_flag(server):
    server.play(refuse(400, "Requested prompt logprobs of 14, which is greater than max allowed: 5"))
    with pytest.raises(InputError, match=r"request 0: .* start vLLM with --max-logprobs 14 or more"):
        sampler(server).score([[4]], [[5]], 14)
    server.play(refuse(400, "the maximum context length is 9"))
    with pytest.raises(Refused, match=r"request 0: .* answers 400: the maximum context length is 9"):
        sampler(server).score([[4]], [[5]], 14)


def test_the_key_is_sent_and_never_shown(server):
    server.play(refuse(401, "bad key sk-secret"))
    with pytest.raises(ConfigError, match="answers 401: set PETKIT_API_KEY") as caught:
        sampler(server, key="sk-secret").score([[4]], [[5]])
    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "responses", "top_k", "message"),
    [
        ([[4], []], [[5], [5]], 1, r"prompts\[1\] must hold at least one token"),
        ([[4], [4]], [[5], []], 1, r"responses\[1\] must hold at least one token"),
        ([[4]], [[15]], 1, r"responses\[0\] must hold ids from 0 to 14, got 15"),
        ([[4]], [[5], [6]], 1, "expected one response for each of 1 prompts, got 2"),
        ([[4]], [[5]], 16, "top_k must lie between 0 and 15, got 16"),
        ([[4]], [[5]], -1, "top_k must lie between 0 and 15, got -1"),
    ],
)
def test_what_cannot_be_scored_is_not_sent(server, prompts, responses, top_k, message):
    with pytest.raises(InputError, match=message):
        sampler(server).score(prompts, responses, top_k)
    assert not server.requests


def test_rows_that_cannot_be_completed_are_not_sent(server):
    for prompts, prefixes, message in (
        ([[4], []], None, r"prompts\[1\] must hold at least one token"),
        ([[4]], [[5, 3]], r"prefixes\[0\] must hold no token that ends a text"),
        ([[4]], [[5] * 6], r"prefixes\[0\] must leave a token to draw"),
        ([[4] * 2048], None, r"prompts\[0\] must leave room for a new token"),
    ):
        with pytest.raises(InputError, match=message):
            sampler(server).sample(prompts, range(len(prompts)), drawing(), prefixes)
    assert not server.requests
    assert sampler(server).sample([], [], drawing()) == []
    assert sampler(server).score([], []) == []


def test_it_runs_within_a_loop_too(server, model):
    server.play(vllm(model))

    async def notebook():
        return sampler(server).sample([[4]], [0], drawing())

    assert asyncio.run(notebook()) == sample(model, [[4]], [0], drawing(), 0)


@pytest.mark.parametrize(
    ("key", "value"), [("server", "tgi"), ("max_in_flight", 0), ("attempts", 0), ("timeout", 0)]
)
def test_settings_out_of_range(key, value):
    with pytest.raises(ValidationError):
        TokenServerConfig(**{key: value})
