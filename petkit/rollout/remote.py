"""A model behind an OpenAI-compatible server: its answers as streams, with the uncertainty of every token."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import httpx

from petkit.errors import ConfigError, InputError, PetkitError
from petkit.rollout.config import ServedConfig
from petkit.rollout.endpoint import MODE_HEADER, Endpoint
from petkit.rollout.entropy import entropy_from_top
from petkit.rollout.sse import Piece, error_text, read_pieces

# Busy or broken for the moment; other statuses stay the same however often one asks.
RETRIED = (429, 500, 502, 503, 504)
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
MAX_ERROR_BODY = 1 << 16

Sleep = Callable[[float], Awaitable[None]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class TokenUncertainty:
    """What the likeliest alternatives tell of one token's distribution; the rest counts as one token."""

    entropy: float
    """In nats: an estimate, never above the truth."""

    bias: float
    """How much larger the true entropy may be, in nats."""

    varentropy: float
    """Variance of log p, in squared nats; an estimate."""

    max_prob: float
    """Probability of the likeliest token."""


def uncertainty(entry: Mapping[str, Any], vocab: int) -> TokenUncertainty:
    """Estimate a token's distribution from its likeliest alternatives.

    Args:
        entry: of `logprobs.content`: `top_logprobs`, a list of objects with `logprob` in nats.
        vocab: size of the vocabulary.

    Returns:
        The estimate and its bound.

    Raises:
        InputError: no alternatives, or values that are no log-probabilities.

    Source:
        `entropy_from_top`; the varentropy is that of the grouped distribution.
    """
    top = entry.get("top_logprobs")
    try:
        values = [float(one["logprob"]) for one in top or ()]
    except (LookupError, TypeError, ValueError):
        raise InputError(f"top_logprobs must hold objects with logprob, got {top!r:.60}") from None
    bound = entropy_from_top(values, max(vocab, len(values)))
    rest = 1 - math.fsum(map(math.exp, values))
    grouped = [*values, *([math.log(rest)] if rest > 0 else ())]
    squares = math.fsum(math.exp(value) * value**2 for value in grouped if value > -math.inf)
    return TokenUncertainty(
        bound.estimate, bound.bias, max(0.0, squares - bound.estimate**2), min(1.0, math.exp(max(values)))
    )


class Refused(InputError):
    """The server takes other requests, but not this one."""


class Late(PetkitError):
    """The time for a whole answer is over."""


class RemoteModel:
    """A client of one served model; open it with `async with`.

    Args:
        endpoint: where it is.
        settings: time limits and attempts.
        key: sent as a bearer token; never part of a message.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: ServedConfig,
        key: str | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.endpoint, self.settings, self._key, self._sleep = endpoint, settings, key, sleep
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> RemoteModel:
        own = self.settings
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(own.read_timeout, connect=own.connect_timeout, pool=None),
            # How many requests are in flight is for the caller to bound.
            limits=httpx.Limits(max_connections=None),
            verify=_certificates(),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()
        self._client = None

    @asynccontextmanager
    async def stream(
        self, messages: Sequence[Mapping[str, Any]], limit: int | None, probing: bool = False, **fields: Any
    ) -> AsyncIterator[AsyncIterator[Piece]]:
        """Ask for an answer; leaving the block before its end closes the connection, which stops the server.

        Args:
            messages: of the conversation; the server renders its chat template.
            limit: tokens of the answer at most; None leaves it to the server.
            probing: whether the answer tells how the model itself begins.
            fields: further ones of the request.

        Returns:
            A context manager that gives the pieces of the answer.

        Raises:
            ConfigError: the server wants another key.
            InputError: the server has no such model, refuses the request, or chooses modes itself, so that
                nothing can be learnt from it by probing.
            PetkitError: no answer within the time limits, a stream that breaks off or is garbled, or a
                server that stays busy or broken.
        """
        body = {
            "model": self.endpoint.model,
            "messages": list(messages),
            **({} if limit is None else {"max_tokens": limit}),
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        deadline = time.monotonic() + self.settings.timeout
        response = await self._opened(body, deadline, probing)
        try:
            if probing and MODE_HEADER in response.headers:
                raise self._routed()
            yield self._pieces(response, limit, deadline)
        finally:
            await response.aclose()

    def _routed(self) -> InputError:
        return InputError(
            f"{self.endpoint.url} routes by itself: put questions to it as they are, or start it "
            "without --route"
        )

    async def _opened(self, body: Mapping[str, Any], deadline: float, probing: bool) -> httpx.Response:
        """Send until the server begins an answer."""
        attempt = 1
        while True:
            response = await self._sent(body, deadline)
            if response.status_code == httpx.codes.OK:
                return response
            error = self._refusal(response, await self._told(response, deadline), probing, attempt)
            wait = _wait(response.headers.get("retry-after"), attempt)
            last = attempt == self.settings.attempts or time.monotonic() + wait > deadline
            if response.status_code not in RETRIED or last:
                raise error
            await self._sleep(wait)
            attempt += 1

    async def _sent(self, body: Mapping[str, Any], deadline: float) -> httpx.Response:
        assert self._client is not None, "open the client with `async with`"
        try:
            request = self._client.build_request("POST", f"{self.endpoint.url}/chat/completions", json=body)
            return await self._within(deadline, self._client.send(request, stream=True))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failure(error) from error
        except Late as error:
            raise Late(f"{self.endpoint.url}: {error}") from None

    async def _told(self, response: httpx.Response, deadline: float) -> str:
        """What the server says of its refusal, without the key, which some servers repeat."""
        body = b""
        try:
            async for chunk in self._chunks(response, deadline):
                body += chunk
                if len(body) > MAX_ERROR_BODY:
                    break
        except (httpx.HTTPError, Late):
            # The status says enough.
            pass
        finally:
            await response.aclose()
        text = error_text(_json(body[:MAX_ERROR_BODY]))
        return text.replace(self._key, "***") if self._key else text

    def _refusal(self, response: httpx.Response, told: str, probing: bool, attempt: int) -> PetkitError:
        status, where = response.status_code, f"{self.endpoint.url} answers {response.status_code}"
        if status in (401, 403):
            return ConfigError(f"{where}: set PETKIT_API_KEY to a key that it takes ({told})")
        if status == 404:
            return InputError(
                f"{where}: it has no model {self.endpoint.model}, or the address lacks /v1 ({told})"
            )
        if status in RETRIED:
            often = f", also when asked {attempt} times" if attempt > 1 else ""
            return PetkitError(f"{where}{often}: try again later ({told})")
        # Whatever the request lacks, mending it would not help.
        if probing and MODE_HEADER in response.headers:
            return self._routed()
        return Refused(f"{where}: {told}")

    async def _pieces(
        self, response: httpx.Response, limit: int | None, deadline: float
    ) -> AsyncIterator[Piece]:
        tokens, ended, spoke = 0, False, False
        try:
            async for piece in read_pieces(self._chunks(response, deadline)):
                spoke = spoke or piece.spoke or piece.finish is not None
                # An end mark alone is no answer.
                ended = ended or piece.finish is not None or (piece.done and spoke)
                if piece.done and not ended:
                    break
                yield piece
                tokens += len(piece.entries)
                if piece.done:
                    return
                # The token that ends an answer may come on top.
                if limit is not None and tokens > limit + 1:
                    raise PetkitError(f"asked for at most {limit} tokens, got more")
        except httpx.HTTPError as error:
            if not ended:
                raise self._failure(error) from error
        except Late as error:
            if not ended:
                raise Late(f"{self.endpoint.url}: {error}") from None
        except PetkitError as error:
            raise PetkitError(f"{self.endpoint.url}: {error}") from error
        if not ended:
            raise PetkitError(f"{self.endpoint.url}: the stream ended in the middle of an answer")

    async def _chunks(self, response: httpx.Response, deadline: float) -> AsyncIterator[bytes]:
        """The body; comments that only keep the connection open do not stretch the time limit."""
        body = response.aiter_bytes()
        with suppress(StopAsyncIteration):
            while True:
                yield await self._within(deadline, anext(body))

    async def _within(self, deadline: float, work: Awaitable[Result]) -> Result:
        """Await a result, but not beyond the deadline, whatever the server does or does not send.

        Raises:
            Late: the deadline has passed.
        """
        task = asyncio.ensure_future(work)
        try:
            # Unlike `asyncio.wait_for` of Python before 3.12 this loses no cancellation.
            await asyncio.wait({task}, timeout=max(0.0, deadline - time.monotonic()))
            if task.done():
                return task.result()
            raise Late(f"no whole answer within {self.settings.timeout:g} s (served.timeout)")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _failure(self, error: Exception) -> PetkitError:
        own, url = self.settings, self.endpoint.url
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return ConfigError(f"a served model must be http://HOST:PORT/v1#NAME, got {url!r:.200}")
        if isinstance(error, httpx.ConnectTimeout):
            return PetkitError(
                f"{url}: no connection within {own.connect_timeout:g} s (served.connect_timeout)"
            )
        if isinstance(error, httpx.ConnectError):
            return PetkitError(f"no server answers at {url}: start it, or correct the address ({error})")
        if isinstance(error, httpx.TimeoutException):
            return PetkitError(f"{url}: nothing came for {own.read_timeout:g} s (served.read_timeout)")
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
            return PetkitError(f"{url}: the stream ended in the middle of an answer ({error})")
        return PetkitError(f"{url}: {type(error).__name__} {error}")


def check_entries(piece: Piece, seen: int, url: str) -> None:
    """Refuse a piece of an answer that comes without the log-probabilities of its tokens.

    Args:
        piece: of a stream.
        seen: tokens whose records came before it.
        url: of the server, for the message.

    Raises:
        InputError: it has text and no record: the tokens could neither be described nor counted.
    """
    if not piece.spoke or piece.entries:
        return
    if seen:
        raise InputError(
            f"{url} stopped sending log-probabilities of its tokens after {seen}: every event with text must "
            "hold the records of its tokens in logprobs.content"
        )
    raise InputError(
        f"{url} sends no log-probabilities of its tokens: the server must support logprobs and "
        "top_logprobs in streams of the chat API (vLLM: start it with --max-logprobs 20 or more)"
    )


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """The authorities that servers are checked against, which take a while to read."""
    return httpx.create_ssl_context()


def _wait(told: str | None, attempt: int) -> float:
    """Seconds to the next attempt: what the server says, else twice as long each time; never above a cap."""
    try:
        seconds = float(told or "")
    except ValueError:
        seconds = FIRST_WAIT * 2 ** (attempt - 1)
    return min(max(seconds, 0.0), LONGEST_WAIT) if math.isfinite(seconds) else LONGEST_WAIT


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", errors="replace")
