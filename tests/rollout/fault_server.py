"""A chat server of a few lines that answers by a script, and fails as it is told to."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[["Handler"], None]


def entry(token: str, log_probs: Sequence[float]) -> dict[str, Any]:
    top = [
        {"token": f"{token}{rank}", "logprob": value, "bytes": None} for rank, value in enumerate(log_probs)
    ]
    return {"token": token, "logprob": log_probs[0], "bytes": None, "top_logprobs": top}


def chunk(text: str = "", entries: Sequence[dict[str, Any]] = (), finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    choice["logprobs"] = {"content": list(entries)} if entries else None
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def words(count: int, top: Sequence[float] = (math.log(0.75), math.log(0.125))) -> list[bytes]:
    """So many events of one token each, without an end."""
    return [chunk(f"w{number} ", [entry(f"w{number} ", top)]) for number in range(count)]


def ended(count: int, usage: dict[str, Any] | None = None) -> list[bytes]:
    """A whole answer of so many tokens."""
    last = [chunk(finish="stop")]
    if usage:
        last.append(event({"choices": [], "usage": usage}))
    return [*words(count), *last, b"data: [DONE]\n\n"]


def stream(*parts: bytes, delay: float = 0.0) -> Step:
    """Answer 200 with these bytes, and close."""

    def step(handler: Handler) -> None:
        handler.begin(200, "text/event-stream")
        for part in parts:
            handler.send(part)
            time.sleep(delay)

    return step


def hold(*parts: bytes) -> Step:
    """Send these bytes, of an answer of 200 where there are any, and then nothing until the client goes."""

    def step(handler: Handler) -> None:
        if parts:
            stream(*parts)(handler)
        handler.connection.recv(1)
        handler.server.own.left.set()

    return step


def refuse(status: int, message: str = "no", **headers: str) -> Step:
    """Answer an error in OpenAI's shape."""

    def step(handler: Handler) -> None:
        handler.begin(status, "application/json", headers)
        handler.send(json.dumps({"error": {"message": message}}).encode())

    return step


@dataclass
class FaultServer:
    """What a test sees of the server."""

    url: str
    script: list[Step] = field(default_factory=list)
    """What to do at each request; the last is done again and again."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client closed the connection in the middle of an answer."""
    sent: int = 0

    def play(self, *steps: Step) -> FaultServer:
        self.script = list(steps)
        return self


class Handler(BaseHTTPRequestHandler):
    server: Any

    body: dict[str, Any]
    """Of the request."""

    def do_POST(self) -> None:
        own: FaultServer = self.server.own
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with own.lock:
            own.requests.append(self.body)
            own.paths.append(self.path)
            own.keys.append(self.headers.get("Authorization"))
            step = own.script.pop(0) if len(own.script) > 1 else own.script[0]
        try:
            step(self)
        except OSError:
            own.left.set()

    def begin(self, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Connection": "close", **(headers or {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.server.own.sent += 1

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    own: FaultServer


@contextmanager
def serving() -> Iterator[FaultServer]:
    server = _Server(("127.0.0.1", 0), Handler)
    server.own = FaultServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.own
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
