from __future__ import annotations

import asyncio
import math
import socket
import time

import pytest

from petkit.errors import ConfigError, InputError, PetkitError
from petkit.rollout.config import ServedConfig
from petkit.rollout.endpoint import Endpoint, api_key, is_endpoint, parse_endpoint
from petkit.rollout.remote import Refused, RemoteModel, check_entries, uncertainty
from petkit.rollout.sse import MAX_LINE
from tests.rollout.fault_server import chunk, ended, entry, event, hold, refuse, serving, stream, words

MESSAGES = [{"role": "user", "content": "why?"}]


@pytest.fixture
def server():
    with serving() as found:
        yield found


def ask(server, limit=8, stop_after=None, key=None, waits=None, **settings):
    """All pieces of an answer, or the first so many."""

    async def sleep(seconds):
        if waits is not None:
            waits.append(seconds)

    async def read():
        found = []
        model = RemoteModel(Endpoint(server.url, "m"), ServedConfig(**settings), key, sleep)
        async with model, model.stream(MESSAGES, limit, temperature=0) as pieces:
            async for piece in pieces:
                found.append(piece)
                if len(found) == stop_after:
                    break
        return found

    return asyncio.run(read())


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def test_a_whole_answer(server):
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    server.play(stream(b": a comment\nevent: x\r\n", *ended(3, usage)))
    pieces = ask(server)
    assert text_of(pieces) == "w0 w1 w2 "
    assert sum(len(piece.entries) for piece in pieces) == 3
    assert [piece.finish for piece in pieces if piece.finish] == ["stop"]
    assert [piece.usage for piece in pieces if piece.usage] == [usage]
    (body,) = server.requests
    assert (body["model"], body["messages"], body["max_tokens"]) == ("m", MESSAGES, 8)
    assert (body["stream"], body["temperature"]) == (True, 0)


def test_events_may_be_cut_anywhere(server):
    whole = b"".join(ended(2)).replace(b"w1", "wé".encode())
    server.play(stream(*(whole[place : place + 1] for place in range(len(whole)))))
    assert text_of(ask(server)) == "w0 wé "


def test_leaving_early_closes_the_connection(server):
    server.play(stream(*words(10_000), delay=0.001))
    assert len(ask(server, limit=10_000, stop_after=3)) == 3
    assert server.left.wait(5)
    assert server.sent < 10_000


def test_the_key_is_sent_and_never_shown(server):
    server.play(refuse(401, "bad key sk-secret"))
    with pytest.raises(ConfigError, match="answers 401: set PETKIT_API_KEY") as caught:
        ask(server, key="sk-secret")
    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in str(caught.value)


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("PETKIT_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert api_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "b")
    assert api_key() == "b"
    monkeypatch.setenv("PETKIT_API_KEY", "a")
    assert api_key() == "a"


def test_a_busy_server_is_asked_again(server):
    waits = []
    steps = (refuse(429, Retry_After="7"), refuse(500), refuse(503, Retry_After="9999"))
    server.play(*steps, stream(*ended(1)))
    assert text_of(ask(server, waits=waits)) == "w0 "
    # What the server says, twice the first wait of half a second, and the cap.
    assert waits == [7, 1.0, 30]
    assert len(server.requests) == 4


def test_a_server_that_stays_busy_is_given_up(server):
    waits = []
    server.play(refuse(429, "slow down"))
    with pytest.raises(
        PetkitError, match=r"answers 429, also when asked 3 times: try again later \(slow down\)"
    ):
        ask(server, waits=waits, attempts=3)
    assert waits == [0.5, 1.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (refuse(404, "no such model"), InputError, "answers 404: it has no model m"),
        (refuse(400, "max_tokens too large"), Refused, "answers 400: max_tokens too large"),
        (stream(*words(2)), PetkitError, "the stream ended in the middle of an answer"),
        (stream(), PetkitError, "the stream ended in the middle of an answer"),
        (stream(b"data: [DONE]\n\n"), PetkitError, "the stream ended in the middle of an answer"),
        (
            stream(event({"usage": {"completion_tokens": "3"}})),
            PetkitError,
            "expected a chat completion chunk",
        ),
        (
            stream(event({"usage": {"completion_tokens": -1}})),
            PetkitError,
            "expected a chat completion chunk",
        ),
        (stream(event({"usage": [1]})), PetkitError, "expected a chat completion chunk"),
        (stream(*words(1), b"%%%\n"), PetkitError, r"expected server-sent events .* got the line '%%%'"),
        (stream(*words(1), b"data: {oops\n\n"), PetkitError, r"expected JSON in an event, got '\{oops'"),
        (stream(b"data: [1]\n\n"), PetkitError, "expected a chat completion chunk"),
        (stream(event({"choices": [{"delta": {"content": 1}}]})), PetkitError, "expected a chat completion"),
        (stream(b'{"choices": []}'), PetkitError, "expected server-sent events"),
        (stream(event({"error": {"message": "out of\nmemory"}})), PetkitError, "broke off: out of memory"),
        (stream(b"data: " + b"x" * MAX_LINE), PetkitError, "lines of at most 1,048,576 bytes"),
        (stream(*words(20)), PetkitError, "asked for at most 8 tokens, got more"),
    ],
)
def test_faults_are_told(server, step, kind, message):
    server.play(step)
    with pytest.raises(kind, match=message) as caught:
        ask(server)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks(server):
    def cut(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        part = words(1)[0]
        handler.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        handler.close_connection = True

    server.play(cut)
    with pytest.raises(PetkitError, match="the stream ended in the middle of an answer"):
        ask(server)


def test_an_answer_that_said_its_end_is_whole(server):
    server.play(stream(*words(1), chunk(finish="length")))
    assert text_of(ask(server)) == "w0 "


def test_time_limits(server):
    server.play(stream(*words(1), b":\n", delay=0.5))
    with pytest.raises(PetkitError, match=r"nothing came for 0\.05 s \(served\.read_timeout\)"):
        ask(server, read_timeout=0.05)
    server.play(stream(*words(6), delay=0.02))
    with pytest.raises(PetkitError, match=r"no whole answer within 0\.03 s \(served\.timeout\)"):
        ask(server, timeout=0.03)
    # Comments keep a connection open and are no answer.
    server.play(stream(*[b": ping\n"] * 9, delay=0.02))
    with pytest.raises(PetkitError, match=r"no whole answer within 0\.03 s"):
        ask(server, timeout=0.03)


@pytest.mark.parametrize("step", [hold(), hold(b":\n"), hold(*words(3))])
def test_a_silent_server_is_left_when_the_time_is_over(server, step):
    server.play(step)
    begun = time.monotonic()
    with pytest.raises(PetkitError, match=r"/v1: no whole answer within 0\.3 s \(served\.timeout\)"):
        ask(server, timeout=0.3, read_timeout=60, attempts=1)
    assert time.monotonic() - begun < 10
    assert server.left.wait(5)


def test_a_refusal_whose_words_do_not_come(server):
    def step(handler):
        handler.begin(400, "application/json")
        handler.connection.recv(1)

    server.play(step)
    with pytest.raises(Refused, match="answers 400"):
        ask(server, timeout=0.3, read_timeout=60)


def test_an_answer_that_said_its_end_waits_for_its_count_in_time(server):
    server.play(hold(*words(1), chunk(finish="stop")))
    assert text_of(ask(server, timeout=0.3, read_timeout=60)) == "w0 "


def test_no_server():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"

        async def connect():
            model = RemoteModel(Endpoint(url, "m"), ServedConfig())
            async with model, model.stream(MESSAGES, 1):
                pass

        with pytest.raises(PetkitError, match="no server answers at http"):
            asyncio.run(connect())


def test_text_without_records_of_tokens():
    (piece,) = asyncio.run(_pieces([chunk("hello")]))
    with pytest.raises(InputError, match="u sends no log-probabilities of its tokens"):
        check_entries(piece, 0, "u")
    with pytest.raises(InputError, match="u stopped sending log-probabilities of its tokens after 7"):
        check_entries(piece, 7, "u")
    for part in (chunk(finish="stop"), chunk("a", [entry("a", [-1.0])])):
        (piece,) = asyncio.run(_pieces([part]))
        check_entries(piece, 7, "u")


async def _pieces(parts):
    from petkit.rollout.sse import read_pieces

    async def body():
        for part in parts:
            yield part

    return [piece async for piece in read_pieces(body())]


def test_uncertainty_of_a_token():
    found = uncertainty(entry("a", [math.log(0.5), math.log(0.25)]), vocab=4)
    # The unknown quarter counts as one token, and is at most two equal ones.
    assert found.entropy == pytest.approx(1.5 * math.log(2))
    assert found.bias == pytest.approx(0.25 * math.log(2))
    assert found.max_prob == 0.5
    known = [0.5, 0.25, 0.25]
    mean = sum(p * math.log(p) for p in known)
    assert found.varentropy == pytest.approx(sum(p * (math.log(p) - mean) ** 2 for p in known))


@pytest.mark.parametrize("bad", [None, [], [{}], [{"logprob": "x"}], [{"logprob": math.nan}], [1]])
def test_alternatives_must_be_log_probabilities(bad):
    with pytest.raises(InputError, match=r"top_log_?probs must hold"):
        uncertainty({"top_logprobs": bad}, 10)


def test_addresses():
    assert parse_endpoint("https://h:1/v1/#org/name") == Endpoint("https://h:1/v1", "org/name")
    assert is_endpoint("http://h/v1#m")
    assert not is_endpoint("hf/org/name")
    assert Endpoint("http://a", "m").sha256 == Endpoint("http://b", "m").sha256


@pytest.mark.parametrize(
    "bad",
    [
        "http://h/v1",
        "http://h/v1#",
        "http:///v1#m",
        "http://h:0/v1#m",
        "http://h:99999/v1#m",
        "http://h/?a=b#m",
    ],
)
def test_other_addresses_are_refused(bad):
    with pytest.raises(ConfigError, match="must be http://HOST:PORT/v1#NAME"):
        parse_endpoint(bad)
    with pytest.raises(ConfigError, match="must hold no password"):
        parse_endpoint("http://user:pw@h/v1#m")
