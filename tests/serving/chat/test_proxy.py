"""petkit serve before petkit serve, and before a server that fails as it is told to."""

from __future__ import annotations

import math

import openai
import pytest

from petkit.data.questions import Question
from petkit.errors import InputError
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.recipe import Router
from petkit.methods.edrm.rule import Rule
from petkit.methods.edrm.served import ServedModel
from petkit.methods.edrm.writers import load_language_model
from petkit.rollout.config import ServedConfig
from petkit.rollout.endpoint import Endpoint
from petkit.serving.chat.proxy import RemoteSource, upstream_key
from tests.methods.edrm.support import thresholds_for
from tests.rollout.fault_server import chunk, ended, hold, refuse, serving, stream, words
from tests.serving.chat.support import ask, client, joined, local_source, running, until

SERVED = ServedConfig(vocab=15, thinking=True, attempts=1)
QUESTIONS = [Question(str(n), text) for n, text in enumerate(("the cat", "dog ran", "on the mat", "good"))]


def ruled(mode, served=SERVED):
    config = RouterConfig(probe_tokens=6, max_new_tokens=20, served=served)
    return Rule(config.model_copy(update={"thresholds": thresholds_for(mode)}))


@pytest.fixture(scope="module")
def behind(folder):
    source = local_source(folder, max_new_tokens=100)
    with running(source) as found:
        yield found
    source.close()


@pytest.fixture
def fault():
    with serving() as found:
        yield found


def before(url, model="tiny", served=SERVED, **options):
    return running(RemoteSource(Endpoint(url, model), served, None, 100, 4), **options)


def test_entropies_lie_within_the_bound_of_the_trackers(folder, behind):
    local = Router(load_language_model(str(folder)), Rule(RouterConfig(probe_tokens=6))).probe(QUESTIONS)
    for top in (1, 4, 15):
        served = ServedConfig(vocab=15, top_log_probs=top, thinking=True)
        rule = Rule(RouterConfig(probe_tokens=6, max_new_tokens=20, served=served))
        writer = ServedModel(Endpoint(behind.url, "tiny"), served)
        for truth, found in zip(local, Router(writer, rule).probe(QUESTIONS), strict=True):
            assert (found.cost, found.finished) == (truth.cost, truth.finished)
            pairs = zip(
                truth.trajectory.entropy, found.trajectory.entropy, found.trajectory.bias, strict=True
            )
            # Both sides are rounded to float32.
            assert all(low - 1e-5 <= exact <= low + bias + 1e-5 for exact, low, bias in pairs)
            # With the whole vocabulary nothing is unknown.
            assert top < 15 or max(found.trajectory.bias) < 1e-4


@pytest.mark.parametrize("mode", ["direct", "standard"])
def test_a_served_model_is_routed_as_a_local_one(folder, behind, mode):
    local = Router(load_language_model(str(folder)), ruled(mode, ServedConfig())).run(QUESTIONS)
    writer = ServedModel(Endpoint(behind.url, "tiny"), SERVED)
    served = Router(writer, ruled(mode), 2).run(QUESTIONS)
    assert [(one.mode, one.text, one.tokens) for one in served] == [
        (one.mode, one.text, one.tokens) for one in local
    ]


@pytest.mark.parametrize("mode", ["direct", "standard"])
def test_the_proxy_answers_as_the_server_behind_would(behind, mode):
    rule = ruled(mode, ServedConfig())
    with running(behind.service.source, rule=rule) as routed, client(routed.url) as chat:
        expected = ask(chat, max_tokens=20, logprobs=True, top_logprobs=2)
    with before(behind.url, rule=ruled(mode)) as proxy, client(proxy.url) as chat:
        answer = ask(chat, max_tokens=20, logprobs=True, top_logprobs=2)
        text, chunks = joined(ask(chat, max_tokens=20, stream=True, stream_options={"include_usage": True}))
    assert answer.choices == expected.choices
    assert answer.usage == chunks[-1].usage == expected.usage
    assert text == expected.choices[0].message.content
    assert (answer.petkit["mode"], answer.petkit["tokens"]) == (mode, expected.petkit["tokens"])
    assert 0 <= answer.petkit["entropy_bias"]["mean"] <= answer.petkit["entropy_bias"]["largest"]


def test_a_server_that_routes_cannot_be_probed(behind):
    rule = ruled("direct", ServedConfig())
    with running(behind.service.source, rule=rule) as routed:
        writer = ServedModel(Endpoint(routed.url, "tiny"), SERVED)
        with pytest.raises(InputError, match=r"question 0: .* routes by itself: .* without --route"):
            Router(writer, ruled("direct")).run(QUESTIONS[:1])
        with before(routed.url) as proxy, client(proxy.url) as chat:
            assert ask(chat, max_tokens=20).choices
        rule = ruled("direct")
        with before(routed.url, rule=rule) as proxy, client(proxy.url) as chat:
            answer = chat.with_options(max_retries=0)
            with pytest.raises(openai.InternalServerError, match="routes by itself"):
                ask(answer, max_tokens=20)
        # Its limit would be in the way too, but raising it would not help.
        plain = RouterConfig(probe_tokens=6, max_new_tokens=101, served=SERVED)
        with pytest.raises(InputError, match=r"question 0: .* routes by itself: .* without --route"):
            Router(writer, Rule(plain)).run(QUESTIONS[:1])
    writer = ServedModel(Endpoint(behind.url, "tiny"), SERVED)
    with pytest.raises(InputError, match="max_tokens must be at most 100, got 101"):
        Router(writer, Rule(plain)).run(QUESTIONS[:1])


def test_a_plain_proxy(behind):
    with client(behind.url) as chat:
        expected = ask(chat)
    with before(behind.url) as proxy, client(proxy.url) as chat:
        answer = ask(chat)
        assert ask(chat, temperature=1.5, seed=3) is not None
        assert "entropy_bias" not in answer.petkit
    assert (answer.choices, answer.usage) == (expected.choices, expected.usage)


def test_without_a_limit_the_server_behind_knows_what_its_context_leaves(fault):
    fault.play(stream(*words(5000)))
    message = [{"role": "user", "content": "the cat"}]
    with before(fault.url, "m") as proxy, client(proxy.url) as chat:
        answer = chat.chat.completions.create(model="tiny", messages=message)
        # The proxy's own limit holds all the same.
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 100)
        assert "max_tokens" not in fault.requests[-1]
    fault.play(stream(*ended(3)))
    with before(fault.url, "m") as proxy, client(proxy.url) as chat:
        assert ask(chat, max_tokens=7).choices
        assert fault.requests[-1]["max_tokens"] == 7


def test_a_client_that_goes_closes_the_stream_behind(fault):
    fault.play(stream(*words(5000), delay=0.001))
    with before(fault.url, "m") as proxy, client(proxy.url) as chat:
        answer = ask(chat, max_tokens=100, stream=True)
        next(answer)
        answer.close()
        assert fault.left.wait(5)
        until(lambda: proxy.service.admitted == 0)


def test_a_server_without_log_probabilities(fault):
    fault.play(stream(chunk("hello "), chunk("you"), chunk(finish="stop")))
    with before(fault.url, "m") as proxy, client(proxy.url) as chat:
        answer = ask(chat)
        assert answer.choices[0].message.content == "hello you"
        # One for each event, since nobody counted.
        assert answer.usage.completion_tokens == 2
    with before(fault.url, "m", rule=ruled("standard")) as proxy, client(proxy.url) as chat:
        with pytest.raises(openai.InternalServerError, match="sends no log-probabilities") as caught:
            ask(chat)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_failed")


@pytest.mark.parametrize(
    ("step", "status", "message"),
    [
        (refuse(400, "too long"), 400, "refuses the request: .*too long"),
        (refuse(401, "who?"), 502, "answers 401"),
        (refuse(404, "no"), 502, "it has no model m"),
        (refuse(500, "oops"), 502, "answers 500"),
        (stream(b"garbage\n"), 502, "expected server-sent events"),
        (stream(*words(3)), 502, "ended in the middle of an answer"),
    ],
)
def test_faults_of_the_server_behind(fault, step, status, message):
    fault.play(step)
    with before(fault.url, "m") as proxy, client(proxy.url) as chat:
        with pytest.raises(openai.APIStatusError, match=message) as caught:
            ask(chat)
        assert caught.value.status_code == status
        until(lambda: proxy.service.admitted == 0)


def test_a_stream_that_breaks_off_ends_with_an_error(fault):
    fault.play(stream(*words(3)))
    with before(fault.url, "m") as proxy, client(proxy.url) as chat:
        answer = ask(chat, stream=True)
        with pytest.raises(openai.APIError, match="ended in the middle of an answer"):
            joined(answer)


@pytest.mark.parametrize("parts", [(), words(3)])
def test_a_silent_server_behind_is_left_in_time(fault, parts):
    fault.play(hold(*parts))
    hasty = ServedConfig(vocab=15, attempts=1, timeout=0.3, read_timeout=60)
    with before(fault.url, "m", hasty) as proxy, client(proxy.url) as chat:
        with pytest.raises(openai.APIStatusError, match=r"no whole answer within 0\.3 s") as caught:
            ask(chat)
        assert caught.value.status_code == 502
        until(lambda: proxy.service.admitted == 0)
    assert fault.left.wait(5)


def test_a_busy_server_is_asked_again(fault):
    fault.play(refuse(429, Retry_After="0"), stream(*ended(2)))
    patient = ServedConfig(vocab=15)
    with before(fault.url, "m", patient) as proxy, client(proxy.url) as chat:
        assert ask(chat).choices[0].message.content == "w0 w1 "
    assert len(fault.requests) == 2


def test_a_stop_closes_the_stream_behind(fault):
    fault.play(stream(*words(5000), delay=0.001))
    with before(fault.url, "m") as proxy, client(proxy.url) as chat:
        answer = ask(chat, max_tokens=100, stop="w3")
    assert answer.choices[0].message.content == "w0 w1 w2 "
    assert fault.left.wait(5)
    assert "stop" not in fault.requests[0]


def test_text_that_was_held_back_comes_with_its_records(fault):
    """The end comes without a record of its own, and what looked like a stop until then comes before it."""
    fault.play(stream(*ended(3)))
    with before(fault.url, "m") as proxy, client(proxy.url) as chat:
        chunks = list(ask(chat, stop="w2 and no more", stream=True, logprobs=True))
        answer = ask(chat, stop="w1 w2", logprobs=True)
    pieces = [choice for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert [choice.delta.content for choice in pieces] == ["w0 ", "w1 ", "w2 "]
    assert [[one.token for one in choice.logprobs.content] for choice in pieces] == [
        ["w0 "],
        ["w1 "],
        ["w2 "],
    ]
    assert answer.choices[0].message.content == "w0 "
    assert [one.token for one in answer.choices[0].logprobs.content] == ["w0 ", "w1 ", "w2 "]


def test_no_more_in_flight_than_asked_for(fault):
    fault.play(stream(*ended(2), delay=0.01))
    source = RemoteSource(Endpoint(fault.url, "m"), SERVED, "up", 100, 1)
    with running(source) as proxy, client(proxy.url) as chat:
        assert ask(chat).choices
        assert source._places._value == 1
    assert fault.keys == ["Bearer up"]


def test_the_own_key_is_not_sent_on(monkeypatch):
    monkeypatch.setenv("PETKIT_API_KEY", "own")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert upstream_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    assert upstream_key() == "other"


def test_the_probe_asks_for_what_its_bound_needs(fault):
    fault.play(stream(*ended(9)))
    with before(fault.url, "m", rule=ruled("standard")) as proxy, client(proxy.url) as chat:
        answer = ask(chat, logprobs=True, top_logprobs=1)
    assert fault.requests[0]["top_logprobs"] == 20
    assert all(len(one.top_logprobs) == 1 for one in answer.choices[0].logprobs.content)
    # Two alternatives are known, and the eighth that is left is among 13 of 15 tokens.
    assert answer.petkit["entropy_bias"]["largest"] == pytest.approx(math.log(13) / 8)
