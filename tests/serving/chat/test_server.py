"""The official client against a real server."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import product
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from petkit.data.questions import Question
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.recipe import Router
from petkit.methods.edrm.rule import Rule
from petkit.methods.edrm.writers import load_language_model
from petkit.serving.chat.app import Limits
from petkit.serving.chat.sources import Part
from tests.methods.edrm.support import thresholds_for
from tests.serving.chat.support import ask, client, joined, local_source, running, until
from tests.serving.text_models import WORDS

MESSAGES = [{"role": "user", "content": "the cat sat"}]
CONFIG = RouterConfig(probe_tokens=8, max_new_tokens=20)


@pytest.fixture(scope="module")
def source(folder):
    found = local_source(folder, max_new_tokens=1900)
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(source):
    with running(source) as found:
        yield found


@pytest.fixture
def chat(server):
    with client(server.url) as found:
        yield found


def ruled(mode):
    return Rule(CONFIG.model_copy(update={"thresholds": thresholds_for(mode)}))


def test_models(chat):
    assert [model.id for model in chat.models.list()] == ["tiny"]
    assert chat.models.retrieve("tiny").owned_by == "petkit"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
        chat.models.retrieve("other")


def test_a_plain_answer(chat):
    answer = ask(chat)
    (choice,) = answer.choices
    assert choice.message.content
    assert choice.logprobs is None
    assert choice.finish_reason == "length"
    # The template's "user ... assistant" around three words, one token each.
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)
    assert answer.petkit == {
        "mode": "standard",
        "reason": "plain serving: no router",
        "regime": None,
        "descriptors": None,
        "probe_tokens": 0,
        "tokens": 12,
    }


def test_a_stream_says_the_same(chat):
    whole = ask(chat)
    text, chunks = joined(ask(chat, stream=True))
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].petkit == whole.petkit
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    text, chunks = joined(ask(chat, stream=True, stream_options={"include_usage": True}))
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_log_probabilities(chat):
    (choice,) = ask(chat, logprobs=True, top_logprobs=3).choices
    tokens = choice.logprobs.content
    assert len(tokens) == 12
    assert " ".join(token.token for token in tokens) == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
        assert bytes(token.bytes).decode() == token.token
    _, chunks = joined(ask(chat, logprobs=True, top_logprobs=3, stream=True))
    streamed = [
        token for chunk in chunks for one in chunk.choices if one.logprobs for token in one.logprobs.content
    ]
    assert streamed == tokens
    assert ask(chat, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_stops(chat):
    whole = ask(chat).choices[0].message.content
    stop = whole.split()[3]
    expected = whole[: whole.find(stop)]
    answer = ask(chat, stop=[stop])
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert joined(ask(chat, stop=stop, stream=True))[0] == expected


def test_sampling(chat):
    def drawn(seed):
        return ask(chat, temperature=1.5, top_p=0.9, seed=seed).choices[0].message.content

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"extra_body": {"top_k": 3}}, openai.BadRequestError, "top_k"),
        ({"max_tokens": 1901}, openai.BadRequestError, "max_tokens"),
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"messages": [{"role": "user", "content": "the " * 2050}]}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, openai.BadRequestError, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own(chat, fields, kind, param, stream):
    wanted = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4, "stream": stream, **fields}
    with pytest.raises(kind) as caught:
        chat.chat.completions.create(**wanted)
    assert caught.value.body["param"] == param
    assert "Traceback" not in str(caught.value)


def test_a_request_that_is_too_long_is_told_by_petkit_alone(source, chat, monkeypatch, caplog):
    monkeypatch.setattr(source.tokenizer, "model_max_length", 2048)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with pytest.raises(openai.BadRequestError, match="the model takes 2048 tokens, got"):
        chat.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "the " * 2050}])
    assert "indexing errors" not in caplog.text


def post(url, body, path="/chat/completions", **headers):
    headers = {"Content-Type": "application/json", **headers}
    return httpx.post(url + path, content=body, headers=headers, timeout=20, trust_env=False)


def test_what_is_no_request(server):
    assert post(server.url, b"{").status_code == 400
    assert post(server.url, b"{}", **{"Content-Type": "text/plain"}).status_code == 415
    assert post(server.url, b"{}", Host="evil.example").status_code == 403
    answer = post(server.url, b"{}", path="/nothing")
    assert answer.status_code == 404
    assert "POST /v1/nothing" in answer.json()["error"]["message"]
    found = httpx.get(server.url + "/chat/completions", trust_env=False)
    assert (found.status_code, found.json()["error"]["type"]) == (405, "invalid_request_error")
    health = httpx.get(server.url.removesuffix("/v1") + "/health", trust_env=False)
    assert health.json() == {"status": "ok", "model": "tiny", "requests": 0}


def test_a_body_that_is_too_large(source):
    with running(source, limits=Limits(body=200)) as small:
        body = json.dumps({"model": "tiny", "messages": MESSAGES, "user": "x" * 300}).encode()
        answer = post(small.url, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        # Without a length, and with one that is a lie in size.
        assert post(small.url, iter([body, body])).status_code == 413
        parts = urlsplit(small.url)
        line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        line.putrequest("POST", "/v1/chat/completions")
        line.putheader("Content-Type", "application/json")
        line.putheader("Content-Length", str(10**9))
        line.endheaders()
        assert line.getresponse().status == 413
        line.close()
        assert small.service.admitted == 0


def test_a_key(source):
    with running(source, key="secret") as locked:
        with client(locked.url, "secret") as chat:
            assert ask(chat).choices
        for key in ("wrong", "secre", "secrett"):
            with (
                client(locked.url, key) as chat,
                pytest.raises(openai.AuthenticationError, match="Bearer KEY"),
            ):
                ask(chat)
        for path in ("/health", "/v1/models", "/v1/nothing"):
            url = locked.url.removesuffix("/v1") + path
            assert httpx.get(url, trust_env=False).status_code == 401
            found = httpx.get(url, headers={"Authorization": "Bearer secret"}, trust_env=False)
            assert found.status_code != 401


@pytest.mark.parametrize("mode", ["direct", "standard", "cot"])
@pytest.mark.parametrize("stream", [False, True])
def test_routing_answers_as_the_router_does(folder, source, mode, stream):
    rule = ruled(mode)
    router = Router(load_language_model(str(folder)), rule)
    # Nothing but a falling trajectory is answered step by step, so one of the texts must have one.
    texts = [" ".join(words) for words in product(WORDS, WORDS)]
    answers = zip(texts, router.run([Question("q", text) for text in texts]), strict=True)
    question, expected = next((text, answer) for text, answer in answers if answer.mode == mode)
    with running(source, rule=rule) as routed, client(routed.url) as chat:
        raw = chat.chat.completions.with_raw_response.create(
            model="tiny",
            messages=[{"role": "user", "content": question}],
            max_tokens=20,
            stream=stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        )
        assert raw.headers["x-petkit-mode"] == mode
        if stream:
            text, chunks = joined(raw.parse())
            answer = chunks[-1]
            assert chunks[-2].petkit == answer.petkit
        else:
            answer = raw.parse()
            text = answer.choices[0].message.content
        assert text.strip() == expected.text
        assert answer.usage.completion_tokens == answer.petkit["tokens"] == expected.tokens
        assert (answer.petkit["mode"], answer.petkit["reason"]) == (mode, expected.reason)
        (probe,) = router.probe([Question("q", question)])
        assert answer.petkit["probe_tokens"] == len(probe.trajectory)


def test_only_the_last_message_is_put_otherwise(source):
    with running(source, rule=ruled("direct")) as routed, client(routed.url) as chat:
        plain = ask(chat, max_tokens=20)
        messages = [{"role": "user", "content": "dog"}, {"role": "assistant", "content": "ran"}, *MESSAGES]
        longer = chat.chat.completions.create(model="tiny", messages=messages, max_tokens=20)
        # Two turns of a role and a word each came on top.
        assert longer.usage.prompt_tokens == plain.usage.prompt_tokens + 4
        with pytest.raises(openai.BadRequestError, match="last message must be the user's"):
            chat.chat.completions.create(model="tiny", messages=messages[:2], max_tokens=20)


def test_no_room_for_a_probe(source):
    with running(source, rule=Rule(CONFIG)) as routed, client(routed.url) as chat:
        answer = ask(chat, max_tokens=7)
        assert answer.petkit["reason"] == "7 tokens leave no room for a probe of 8"
        assert (answer.petkit["probe_tokens"], answer.petkit["tokens"]) == (0, 7)
        assert ask(chat, max_tokens=8).petkit["probe_tokens"] == 8


def test_a_sampled_answer_begins_anew_behind_its_probe(source):
    with (
        running(source, rule=ruled("standard")) as routed,
        client(routed.url) as chat,
        running(source) as plain,
    ):
        answer = ask(chat, temperature=1.5, seed=3)
        with client(plain.url) as other:
            alone = ask(other, temperature=1.5, seed=3)
    assert answer.choices[0].message.content == alone.choices[0].message.content
    assert answer.petkit["tokens"] == 8 + alone.petkit["tokens"]


def test_two_hundred_at_once(source):
    texts = [f"{WORDS[n % 11]} {WORDS[n % 4]}" for n in range(200)]
    with running(source) as found, client(found.url) as chat:
        alone = {text: ask(chat, text).choices[0].message.content for text in sorted(set(texts))}

        def one(n):
            if n % 2:
                return joined(ask(chat, texts[n], stream=True))[0]
            return ask(chat, texts[n]).choices[0].message.content

        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(one, range(200)))
        assert answers == [alone[text] for text in texts]
        assert found.service.admitted == 0


class Gated:
    """A source that gives one part, and the last one when the gate is opened."""

    name, thinks, max_new_tokens = "gated", True, 10

    def __init__(self):
        self.gate, self.open, self.error, self.flood = None, 0, None, False

    @asynccontextmanager
    async def write(self, ask):
        self.gate = self.gate or asyncio.Event()
        self.open += 1
        try:
            yield self._parts()
        finally:
            self.open -= 1

    async def _parts(self):
        yield Part("a", 1)
        while self.flood:
            yield Part("a" * 100_000, 1)
        await self.gate.wait()
        if self.error:
            raise self.error
        yield Part("b", 1, finish="stop")

    def close(self):
        pass


def test_a_full_queue(caplog):
    source = Gated()
    with running(source, limits=Limits(queue=3)) as full, client(full.url) as chat:
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(ask, chat, max_tokens=5) for _ in range(3)]
            until(lambda: source.open == 3)
            with pytest.raises(openai.RateLimitError) as caught:
                ask(chat, max_tokens=5)
            assert caught.value.response.headers["retry-after"] == "1"
            assert caught.value.code == "queue_full"
            full.server.servers[0].get_loop().call_soon_threadsafe(source.gate.set)
            assert [one.result(10).choices[0].message.content for one in waiting] == ["ab"] * 3
        assert ask(chat, max_tokens=5).choices[0].message.content == "ab"


@pytest.mark.parametrize("stream", [False, True])
def test_time_limit(stream):
    source = Gated()
    with running(source, limits=Limits(timeout=0.05)) as slow, client(slow.url) as chat:
        if stream:
            # The first part is out by then: the error comes in the stream.
            with pytest.raises(openai.APIError, match=r"no answer within 0\.05 s"):
                joined(ask(chat, max_tokens=5, stream=True))
        else:
            with pytest.raises(openai.InternalServerError, match=r"no answer within 0\.05 s") as caught:
                ask(chat, max_tokens=5)
            assert caught.value.status_code == 504
        until(lambda: source.open == 0 and slow.service.admitted == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_shows_no_trace(stream, caplog):
    source = Gated()
    source.error = ZeroDivisionError("a secret")
    with running(source) as broken, client(broken.url) as chat:
        source.gate = asyncio.Event()
        source.gate.set()
        with pytest.raises(openai.APIError, match="the server failed on this request") as caught:
            joined(ask(chat, max_tokens=5, stream=True)) if stream else ask(chat, max_tokens=5)
        assert "secret" not in str(caught.value)
        until(lambda: source.open == 0 and broken.service.admitted == 0)
    assert "a secret" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_the_row(server, source, stream):
    parts = urlsplit(server.url)
    line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1900, "stream": stream}
    line.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    if stream:
        assert line.getresponse().read(20)
    until(lambda: source.engine.running)
    assert server.service.admitted == 1
    line.close()
    if stream:
        line = None
    until(lambda: not source.engine.running and not server.service.admitted, 2)


def test_a_client_that_goes_before_its_request_is_whole(server, caplog):
    parts = urlsplit(server.url)
    line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    line.putrequest("POST", "/v1/chat/completions")
    line.putheader("Content-Type", "application/json")
    line.putheader("Content-Length", "100")
    line.endheaders(b"{")
    until(lambda: server.service.admitted == 1)
    line.close()
    until(lambda: server.service.admitted == 0)
    assert not caplog.records


def test_shutting_down():
    source = Gated()
    with running(source) as closing, client(closing.url) as chat, ThreadPoolExecutor(1) as pool:
        last = pool.submit(ask, chat, max_tokens=5)
        until(lambda: source.open == 1)
        closing.service.closing = True
        with pytest.raises(openai.InternalServerError, match="shutting down") as caught:
            ask(chat, max_tokens=5)
        assert caught.value.status_code == 503
        url = closing.url.removesuffix("/v1") + "/health"
        assert httpx.get(url, trust_env=False).status_code == 503
        closing.server.servers[0].get_loop().call_soon_threadsafe(source.gate.set)
        assert last.result(10).choices[0].message.content == "ab"


def test_what_is_still_in_work_is_told_that_the_server_ends(caplog):
    source = Gated()
    with running(source) as ending, client(ending.url) as chat, ThreadPoolExecutor(2) as pool:
        whole = pool.submit(ask, chat, max_tokens=5)
        stream = pool.submit(lambda: joined(ask(chat, max_tokens=5, stream=True)))
        # And one who never sends the rest of the body.
        parts = urlsplit(ending.url)
        line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        line.putrequest("POST", "/v1/chat/completions")
        for header in (("Content-Type", "application/json"), ("Content-Length", "100")):
            line.putheader(*header)
        line.endheaders(b"{")
        until(lambda: source.open == 2 and ending.service.admitted == 3)
        ending.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.InternalServerError, match="the server is shutting down") as caught:
            whole.result(20)
        assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            stream.result(20)
        answer = line.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "shutting_down")
        line.close()
        until(lambda: source.open == 0 and ending.service.admitted == 0)
    assert not [record for record in caplog.records if record.exc_info]


def is_stuck(server):
    """Whether a client takes nothing more: what was written to it waits in this process."""
    return any(connection.flow.write_paused for connection in tuple(server.server_state.connections))


def test_who_does_not_read_is_cut_without_a_trace(caplog, monkeypatch):
    """Nothing more can be sent to it, so that its request ends with the server."""
    monkeypatch.setattr("petkit.serving.chat.server.LAST_WORDS", 0)
    source = Gated()
    source.flood = True
    with running(source) as ending:
        parts = urlsplit(ending.url)
        line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        body = json.dumps({"model": "tiny", "messages": MESSAGES, "max_tokens": 5, "stream": True})
        line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        until(lambda: source.open == 1 and is_stuck(ending.server))
        ending.server.handle_exit(signal.SIGTERM, None)
        until(lambda: source.open == 0)
    line.close()
    assert not [record for record in caplog.records if record.exc_info]
