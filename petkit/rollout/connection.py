"""Requests to an OpenAI-compatible server: time limits, further attempts, and what a refusal means."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

import httpx

from petkit.errors import ConfigError, InputError, PetkitError
from petkit.rollout.config import ConnectionConfig
from petkit.rollout.endpoint import Endpoint
from petkit.rollout.sse import error_text

# Busy or broken for the moment; other statuses stay the same however often one asks.
RETRIED = (429, 500, 502, 503, 504)
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
MAX_ERROR_BODY = 1 << 16
MAX_BODY = 1 << 30

Sleep = Callable[[float], Awaitable[None]]
Explain = Callable[[httpx.Response], PetkitError | None]
Result = TypeVar("Result")


class Refused(InputError):
    """The server takes other requests, but not this one."""


class Garbled(PetkitError):
    """An answer that is none of the protocol; the next one may be."""


class Late(PetkitError):
    """The time for a whole answer is over."""


class ServerGone(PetkitError):
    """No attempt at a request got a whole answer.

    Args:
        message: of the last attempt.
        results: what other requests of the same call were answered, by their numbers.
    """

    passing = True

    def __init__(self, message: str, results: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.results: dict[int, Any] = dict(results or {})


class Passing(Exception):
    """A failure that another attempt may mend.

    Args:
        error: to raise when no attempt is left.
        told: seconds that the server wants to be left alone for.
    """

    def __init__(self, error: PetkitError, told: str | None = None) -> None:
        super().__init__(str(error))
        self.error, self.told = error, told


class Connection:
    """A client of one server; open it with `async with`.

    Args:
        endpoint: where it is.
        settings: time limits and attempts.
        key: sent as a bearer token; never part of a message.
        sleep: waits between attempts.
        section: of the recipe that the settings are from, for messages.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: ConnectionConfig,
        key: str | None = None,
        sleep: Sleep = asyncio.sleep,
        section: str = "served",
    ) -> None:
        self.endpoint, self.limits, self.section = endpoint, settings, section
        self._key, self._sleep = key, sleep
        self._client: httpx.AsyncClient | None = None

    async def open(self) -> None:
        """Make the client; `close` ends it."""
        own = self.limits
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(own.read_timeout, connect=own.connect_timeout, pool=None),
            # How many requests are in flight is for the caller to bound.
            limits=httpx.Limits(max_connections=None),
            verify=_certificates(),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
        )

    async def close(self) -> None:
        """End all requests."""
        if self._client is not None:
            await self._client.aclose()
        self._client = None

    async def begin(
        self, url: str, body: Mapping[str, Any], deadline: float, explain: Explain = lambda response: None
    ) -> httpx.Response:
        """Send until the server begins an answer; close what comes back.

        Args:
            url: to post to.
            body: of the request, sent as JSON.
            deadline: on the clock of `time.monotonic`.
            explain: says more of a refusal of the request itself, where it can.

        Returns:
            The response, whose body is still to be read.

        Raises:
            ConfigError: the server wants another key, or the address is none.
            InputError: the server has no such model, or refuses the request.
            PetkitError: no answer within the time limits, or a server that stays busy or broken.
        """

        async def once(attempt: int) -> httpx.Response:
            try:
                return await self._answered(url, body, deadline, explain, attempt)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self.failure(error) from error

        return await self._repeated(once, deadline)

    async def whole(self, url: str, body: Mapping[str, Any], read: Callable[[bytes], Result]) -> Result:
        """Send until the server gave a whole answer; one that broke off or is garbled is asked for anew.

        Args:
            url: to post to.
            body: of the request, sent as JSON.
            read: takes the body of the answer; raises `Garbled` where it is none of the protocol.

        Returns:
            What `read` found.

        Raises:
            ConfigError: the server wants another key, or the address is none.
            InputError: the server has no such model, refuses the request, or sends more than 1 GiB; and
                what `read` raises beside `Garbled`.
            ServerGone: no whole answer within the attempts and time limits.
        """
        deadline = time.monotonic() + self.limits.timeout

        async def once(attempt: int) -> Result:
            try:
                response = await self._answered(url, body, deadline, lambda response: None, attempt)
                try:
                    content = await self._read(response, deadline)
                finally:
                    await response.aclose()
                return read(content)
            except Garbled as error:
                raise Passing(ServerGone(f"{self.endpoint.url}: {error}{_often(attempt)}")) from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = self.failure(error)
                if isinstance(failure, ConfigError):
                    raise failure from error
                raise Passing(ServerGone(f"{failure}{_often(attempt)}")) from error

        try:
            return await self._repeated(once, deadline)
        except (ConfigError, InputError, ServerGone):
            raise
        except PetkitError as error:
            raise ServerGone(str(error)) from error

    async def chunks(self, response: httpx.Response, deadline: float) -> AsyncIterator[bytes]:
        """The body; comments that only keep the connection open do not stretch the time limit."""
        body = response.aiter_bytes()
        with suppress(StopAsyncIteration):
            while True:
                yield await self._within(deadline, anext(body))

    def failure(self, error: Exception) -> PetkitError:
        """What an error of the client means, in words that say what to do."""
        own, url = self.limits, self.endpoint.url
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return ConfigError(f"a served model must be http://HOST:PORT/v1#NAME, got {url!r:.200}")
        if isinstance(error, httpx.ConnectTimeout):
            return PetkitError(
                f"{url}: no connection within {own.connect_timeout:g} s ({self.section}.connect_timeout)"
            )
        if isinstance(error, httpx.ConnectError):
            return PetkitError(f"no server answers at {url}: start it, or correct the address ({error})")
        if isinstance(error, httpx.TimeoutException):
            return PetkitError(
                f"{url}: nothing came for {own.read_timeout:g} s ({self.section}.read_timeout)"
            )
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
            return PetkitError(f"{url}: the stream ended in the middle of an answer ({error})")
        return PetkitError(f"{url}: {type(error).__name__} {error}")

    async def _repeated(self, once: Callable[[int], Awaitable[Result]], deadline: float) -> Result:
        attempt = 1
        while True:
            try:
                return await once(attempt)
            except Passing as failure:
                wait = _wait(failure.told, attempt)
                if attempt == self.limits.attempts or time.monotonic() + wait > deadline:
                    raise failure.error from failure.__cause__
            await self._sleep(wait)
            attempt += 1

    async def _answered(
        self, url: str, body: Mapping[str, Any], deadline: float, explain: Explain, attempt: int
    ) -> httpx.Response:
        """Send once; a refusal is raised, as `Passing` where it may not last."""
        assert self._client is not None, "open the client with `async with`"
        request = self._client.build_request("POST", url, json=body)
        try:
            response = await self._within(deadline, self._client.send(request, stream=True))
        except Late as error:
            raise Late(f"{self.endpoint.url}: {error}") from None
        if response.status_code == httpx.codes.OK:
            return response
        refusal = self._refusal(response, await self._told(response, deadline), explain, attempt)
        if response.status_code in RETRIED:
            raise Passing(refusal, response.headers.get("retry-after"))
        raise refusal

    async def _read(self, response: httpx.Response, deadline: float) -> bytes:
        parts, size = list[bytes](), 0
        try:
            async for chunk in self.chunks(response, deadline):
                parts.append(chunk)
                size += len(chunk)
                if size > MAX_BODY:
                    raise InputError(f"{self.endpoint.url}: expected an answer of at most 1 GiB, got more")
        except Late as error:
            raise Late(f"{self.endpoint.url}: {error}") from None
        return b"".join(parts)

    async def _told(self, response: httpx.Response, deadline: float) -> str:
        """What the server says of its refusal, without the key, which some servers repeat."""
        body = b""
        try:
            async for chunk in self.chunks(response, deadline):
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

    def _refusal(self, response: httpx.Response, told: str, explain: Explain, attempt: int) -> PetkitError:
        status, where = response.status_code, f"{self.endpoint.url} answers {response.status_code}"
        if status in (401, 403):
            return ConfigError(f"{where}: set PETKIT_API_KEY to a key that it takes ({told})")
        if status == 404:
            return InputError(
                f"{where}: it has no model {self.endpoint.model}, or the address lacks /v1 ({told})"
            )
        if status in RETRIED:
            return PetkitError(f"{where}{_often(attempt)}: try again later ({told})")
        return explain(response) or Refused(f"{where}: {told}")

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
            raise Late(f"no whole answer within {self.limits.timeout:g} s ({self.section}.timeout)")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def to_the_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine from code that is none, also where a loop runs already.

    Args:
        work: makes and closes its own connections.

    Returns:
        What it gives.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # Notebooks run a loop of their own, in which no other may run.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """The authorities that servers are checked against, which take a while to read."""
    return httpx.create_ssl_context()


def _often(attempt: int) -> str:
    return f", also when asked {attempt} times" if attempt > 1 else ""


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
