"""A model behind an OpenAI-compatible server: its answers as streams, with the uncertainty of every token."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from petkit.errors import InputError, PetkitError
from petkit.rollout.config import ServedConfig
from petkit.rollout.connection import Connection, Late, Refused, Sleep
from petkit.rollout.endpoint import MODE_HEADER, Endpoint
from petkit.rollout.entropy import entropy_from_top
from petkit.rollout.sse import Piece, read_pieces

__all__ = ["Refused", "RemoteModel", "TokenUncertainty", "check_entries", "uncertainty"]


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


class RemoteModel(Connection):
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
        super().__init__(endpoint, settings, key, sleep)
        self.settings = settings

    async def __aenter__(self) -> RemoteModel:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

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

        def routed(response: httpx.Response) -> PetkitError | None:
            # Whatever the request lacks, mending it would not help.
            return self._routed() if probing and MODE_HEADER in response.headers else None

        response = await self.begin(f"{self.endpoint.url}/chat/completions", body, deadline, routed)
        try:
            if (error := routed(response)) is not None:
                raise error
            yield self._pieces(response, limit, deadline)
        finally:
            await response.aclose()

    def _routed(self) -> InputError:
        return InputError(
            f"{self.endpoint.url} routes by itself: put questions to it as they are, or start it "
            "without --route"
        )

    async def _pieces(
        self, response: httpx.Response, limit: int | None, deadline: float
    ) -> AsyncIterator[Piece]:
        tokens, ended, spoke = 0, False, False
        try:
            async for piece in read_pieces(self.chunks(response, deadline)):
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
                raise self.failure(error) from error
        except Late as error:
            if not ended:
                raise Late(f"{self.endpoint.url}: {error}") from None
        except PetkitError as error:
            raise PetkitError(f"{self.endpoint.url}: {error}") from error
        if not ended:
            raise PetkitError(f"{self.endpoint.url}: the stream ended in the middle of an answer")


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
