"""Requests that are answered whole or not at all, within their attempts and time."""

from __future__ import annotations

import asyncio

import pytest

from petkit.errors import ConfigError, InputError, PetkitError
from petkit.rollout import connection
from petkit.rollout.config import ConnectionConfig
from petkit.rollout.connection import Connection, Garbled, Refused, ServerGone
from petkit.rollout.endpoint import Endpoint
from tests.rollout.fault_server import hold, refuse, serving, stream
from tests.rollout.token_stub import answering, cut, drop

RIGHT = answering(lambda body, path: b"x" * 1000)


@pytest.fixture
def server():
    with serving() as found:
        yield found


def ask(server, url=None, waits=None, read=lambda body: body, **settings):
    async def sleep(seconds):
        if waits is not None:
            waits.append(seconds)

    async def work():
        own = Connection(
            Endpoint(server.url, "m"), ConnectionConfig(**settings), "sk-secret", sleep, "teacher"
        )
        await own.open()
        try:
            return await own.whole(url or f"{server.url}/x", {"a": 1}, read)
        finally:
            await own.close()

    return asyncio.run(work())


def test_an_answer_that_breaks_off_is_asked_for_anew(server):
    waits = []
    server.play(cut(RIGHT), drop, refuse(500), RIGHT)
    assert ask(server, waits=waits) == b"x" * 1000
    assert waits == [0.5, 1.0, 2.0]
    assert server.requests == [{"a": 1}] * 4


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (cut(RIGHT), "the stream ended in the middle of an answer .*, also when asked 3 times"),
        (refuse(502, "sk-secret"), r"answers 502, also when asked 3 times: try again later \(\*\*\*\)"),
    ],
)
def test_attempts_end(server, step, message):
    server.play(step)
    with pytest.raises(ServerGone, match=message) as caught:
        ask(server, attempts=3)
    assert len(server.requests) == 3
    assert caught.value.results == {}


def test_a_garbled_answer_is_asked_for_anew(server):
    def read(body):
        if body != b"x" * 1000:
            raise Garbled(f"expected x, got {len(body)} bytes")
        return len(body)

    waits = []
    server.play(stream(b"<html>"), RIGHT)
    assert ask(server, waits=waits, read=read) == 1000
    assert waits == [0.5]
    server.play(stream(b"<html>"))
    message = rf"^{server.url}: expected x, got 6 bytes, also when asked 2 times$"
    with pytest.raises(ServerGone, match=message) as caught:
        ask(server, read=read, attempts=2)
    assert caught.value.passing


def test_nobody_waits_beyond_the_time_limit(server):
    server.play(refuse(429, Retry_After="20"))
    waits = []
    with pytest.raises(ServerGone, match="answers 429: try again later"):
        ask(server, waits=waits, timeout=5)
    assert not waits
    server.play(hold(b"part"))
    with pytest.raises(ServerGone, match=r"no whole answer within 0\.2 s \(teacher\.timeout\)"):
        ask(server, timeout=0.2)


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (refuse(400, "too long"), Refused, "answers 400: too long"),
        (refuse(404, "nothing here"), InputError, "it has no model m, or the address lacks /v1"),
        (refuse(403), ConfigError, "set PETKIT_API_KEY"),
    ],
)
def test_what_stays_the_same_is_asked_once(server, step, kind, message):
    server.play(step)
    with pytest.raises(kind, match=message) as caught:
        ask(server)
    assert type(caught.value) is kind
    assert len(server.requests) == 1


def test_addresses_that_are_none(server):
    with pytest.raises(ConfigError, match="must be http://HOST:PORT"):
        ask(server, url="ftp://h/x")


def test_an_endless_answer_is_left(server, monkeypatch):
    monkeypatch.setattr(connection, "MAX_BODY", 500)
    server.play(stream(b"x" * 400, b"x" * 400))
    with pytest.raises(InputError, match="an answer of at most 1 GiB, got more"):
        ask(server)


def test_a_server_that_is_gone_is_an_error_of_petkits():
    assert issubclass(ServerGone, PetkitError)
    assert ServerGone("no", {3: "x"}).results == {3: "x"}
