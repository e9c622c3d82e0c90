"""The HTTP side: who may ask, how much and for how long, and what every answer and refusal looks like."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from petkit.errors import PetkitError
from petkit.methods.edrm.rule import Rule
from petkit.rollout.endpoint import MODE_HEADER
from petkit.serving.chat.clock import Clock
from petkit.serving.chat.errors import ChatError, closing
from petkit.serving.chat.requests import parse_request
from petkit.serving.chat.responses import Shape, event
from petkit.serving.chat.routing import Exchange
from petkit.serving.chat.sources import Part, Source

log = logging.getLogger(__name__)

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
# A refused body is read on this far beyond the limit, so that the client gets to read the refusal.
DRAINED = 4

Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """What the server takes at most."""

    body: int = 1 << 20
    """Bytes of a request."""

    queue: int = 256
    """Requests that wait or are being answered."""

    timeout: float = 300.0
    """Seconds of one request."""


@dataclass(eq=False)
class ChatService:
    """What the server's requests share.

    Args:
        source: that answers.
        name: of the model, for clients.
        rule: prompts, and what decides; None answers plainly.
        limits: what is taken at most.
        key: that clients must send; None takes requests to this machine's own names only.
    """

    source: Source
    name: str
    rule: Rule | None = None
    limits: Limits = Limits()
    key: str | None = None
    closing: bool = False
    clocks: set[Clock] = field(default_factory=set)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def admitted(self) -> int:
        """Requests that wait or are being answered."""
        return len(self.clocks)

    def cut(self) -> None:
        """End every request that is being answered; what has begun to be sent ends with an error."""
        for clock in tuple(self.clocks):
            clock.cut(closing())

    @contextmanager
    def admission(self) -> Iterator[Clock]:
        """A place for one request, and its clock.

        Raises:
            ChatError: 429 without a free place, 503 when the server is being stopped.
        """
        if self.closing:
            raise closing()
        if self.admitted >= self.limits.queue:
            raise ChatError(
                429,
                f"{self.admitted} requests are in work: try again later",
                None,
                "queue_full",
                retry_after=1,
            )
        clock = Clock(self.limits.timeout)
        self.clocks.add(clock)
        try:
            yield clock
        finally:
            self.clocks.discard(clock)


def build_app(service: ChatService) -> FastAPI:
    """The application.

    Args:
        service: what its requests share.

    Returns:
        `GET /health`, `GET /v1/models`, `GET /v1/models/NAME` and `POST /v1/chat/completions`.
    """
    app = FastAPI(title="petkit serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Door, service=service)
    app.add_exception_handler(ChatError, _refused if service.rule is None else _refused_unrouted)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _broken)

    @app.get("/health")
    async def health() -> JSONResponse:
        state = "closing" if service.closing else "ok"
        content = {"status": state, "model": service.name, "requests": service.admitted}
        return JSONResponse(content, 503 if service.closing else 200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_model(service, name)
        return _model(service)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        with ExitStack() as place:
            clock = place.enter_context(service.admission())
            body = await clock.within(_body(request, service.limits.body))
            asked = parse_request(body)
            _check_model(service, asked.model)
            exchange = Exchange(service.source, asked, service.rule)
            parts = clock.timed(exchange.parts())
            shape = Shape(exchange, service.name)
            if not asked.stream:
                return await unless_gone(request, _whole(shape, parts))
            begun = await unless_gone(request, _begun(parts))
            return _Stream(shape, begun, parts, place.pop_all())

    return app


class Door:
    """Middleware that lets in who has the key or, where there is none, who asks for this machine by name.

    Without a key any page in a browser of this machine could send requests; such a page cannot make the
    browser name this machine in `Host` (after DNS rebinding it names the page's own) nor send JSON unasked.
    """

    def __init__(self, app: ASGIApp, service: ChatService) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            refusal = self._refusal(headers, scope["method"])
            if refusal is not None:
                await _response(refusal)(scope, receive, send)
                return
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            # The server cancels who does not read an answer's end, or everything at a second signal: nothing
            # can be told them any more, and there is no fault to be traced.
            if not self.service.closing:
                raise

    def _refusal(self, headers: dict[bytes, bytes], method: str) -> ChatError | None:
        if self.service.key is not None:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self.service.key}".encode()):
                text = "the header Authorization must be `Bearer KEY` with this server's key"
                return ChatError(401, text, None, "invalid_api_key")
        elif _hostname(headers.get(b"host", b"")) not in LOCAL_HOSTS:
            return ChatError(403, "without a key, requests must be to localhost: check the header Host")
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if method == "POST" and kind != b"application/json":
            return ChatError(415, "the header Content-Type must be application/json")
        return None


class _Stream(StreamingResponse):
    """A stream that frees its request's place and row, however it ends."""

    def __init__(
        self, shape: Shape, begun: list[Part], parts: AsyncGenerator[Part, None], place: ExitStack
    ) -> None:
        self.parts, self.place = parts, place
        self.events = self._events(shape, begun)
        headers = _headers(shape) | {"Cache-Control": "no-cache"}
        super().__init__(self.events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        with self.place:
            # The generators may be left before their end, or before their beginning.
            async with aclosing(self.parts), aclosing(self.events):
                await super().__call__(scope, receive, send)

    async def _events(self, shape: Shape, begun: list[Part]) -> AsyncGenerator[bytes, None]:
        try:
            yield shape.first() + b"".join(map(shape.part, begun))
            async for part in self.parts:
                if data := shape.part(part):
                    yield data
            yield shape.last()
        except Exception as error:
            # The status is out already: clients take an error in the stream, which then has no end mark.
            yield event(_chat_error(error).body())


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Wait for a result, but not longer than the client does.

    Args:
        request: of the client.
        work: to wait for; cancelled when the client goes.

    Returns:
        The result.

    Raises:
        ClientDisconnect: the client went.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, limit: int) -> bytes:
    told = request.headers.get("content-length", "0")
    size = int(told) if told.isdecimal() else 0
    body, read = b"", 0
    if size <= DRAINED * limit:
        async for chunk in request.stream():
            read += len(chunk)
            body = body + chunk if read <= limit else b""
            if read > DRAINED * limit:
                break
    if max(size, read) > limit:
        raise ChatError(413, f"the body must have at most {limit} bytes", None, "body_too_large")
    return body


async def _whole(shape: Shape, parts: AsyncGenerator[Part, None]) -> Response:
    async with aclosing(parts):
        found = [part async for part in parts]
    return JSONResponse(shape.whole(found), headers=_headers(shape))


async def _begun(parts: AsyncGenerator[Part, None]) -> list[Part]:
    """The first part, by which the mode is decided and whatever refuses the request has spoken."""
    return [await anext(parts)]


def _headers(shape: Shape) -> dict[str, str]:
    exchange = shape.exchange
    return {} if exchange.rule is None else {MODE_HEADER: exchange.decision.mode}


def _model(service: ChatService) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "petkit"}


def _check_model(service: ChatService, name: str) -> None:
    if name != service.name:
        text = f"there is no model {name!r:.80} here, only {service.name}"
        raise ChatError(404, text, "model", "model_not_found")


def _hostname(host: bytes) -> str:
    text = host.decode("latin-1")
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    return name.lower()


def _chat_error(error: Exception) -> ChatError:
    """What a client is told of a failure: of one in the server no more than that it is there."""
    if isinstance(error, ChatError):
        return error
    if isinstance(error, PetkitError):
        log.error("a request failed: %s", error)
        return ChatError(500, f"the model cannot answer: {error}")
    log.error("a request failed", exc_info=error)
    return ChatError(500, "the server failed on this request: its log says how")


def _response(error: ChatError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    return _response(_chat_error(error))


async def _refused_unrouted(request: Request, error: Exception) -> Response:
    """A refusal that tells a router which would probe this server that it routes already."""
    response = _response(_chat_error(error))
    response.headers[MODE_HEADER] = "none"
    return response


async def _left(request: Request, error: Exception) -> Response:
    # Nobody reads it, but an application must answer something.
    return Response(status_code=499)


async def _broken(request: Request, error: Exception) -> Response:
    return _response(_chat_error(error))


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}"
    return _response(ChatError(error.status_code, text))
