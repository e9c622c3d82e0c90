"""Another OpenAI-compatible server as a source: streams are passed on, log-probabilities looked at."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from petkit.errors import PetkitError
from petkit.rollout.config import ServedConfig
from petkit.rollout.endpoint import Endpoint
from petkit.rollout.remote import Refused, RemoteModel, check_entries, uncertainty
from petkit.rollout.sse import Piece
from petkit.serving.chat.errors import ChatError
from petkit.serving.chat.sources import Ask, Part


def upstream_key() -> str | None:
    """The key for the server behind; PETKIT_API_KEY guards this one and is not for others to know."""
    return os.environ.get("OPENAI_API_KEY", "").strip() or None


class RemoteSource:
    """A served model.

    Args:
        endpoint: where it is.
        settings: time limits, and how its entropies are estimated.
        key: for it.
        max_new_tokens: of one answer at most.
        batch_size: requests in flight to it at most.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: ServedConfig,
        key: str | None,
        max_new_tokens: int,
        batch_size: int = 16,
    ) -> None:
        self.endpoint, self.settings, self.max_new_tokens = endpoint, settings, max_new_tokens
        self.name, self.thinks = endpoint.model, settings.thinking
        self._key, self._places = key, asyncio.Semaphore(batch_size)

    def close(self) -> None:
        """Nothing is held between requests."""

    @asynccontextmanager
    async def write(self, ask: Ask) -> AsyncIterator[AsyncIterator[Part]]:
        """As `Source` says."""
        async with self._places:
            try:
                async with (
                    RemoteModel(self.endpoint, self.settings, self._key) as model,
                    model.stream(ask.messages, ask.limit, ask.tracked, **self._fields(ask)) as pieces,
                ):
                    yield self._parts(pieces, ask)
            except PetkitError as error:
                raise _chat_error(error) from error

    def _fields(self, ask: Ask) -> dict[str, Any]:
        fields: dict[str, Any] = {"temperature": ask.temperature or 0.0}
        if ask.tracked or ask.top is not None:
            own = self.settings.top_log_probs if ask.tracked else 0
            fields |= {"logprobs": True, "top_logprobs": max(own, ask.top or 0)}
        optional = {"top_p": ask.top_p, "seed": ask.seed}
        fields |= {name: value for name, value in optional.items() if value is not None}
        if ask.thinking is not None:
            fields["chat_template_kwargs"] = {"enable_thinking": ask.thinking}
        return fields

    async def _parts(self, pieces: AsyncIterator[Piece], ask: Ask) -> AsyncIterator[Part]:
        seen, written, finish, usage = 0, 0, "stop", dict[str, int]()
        async for piece in pieces:
            if ask.tracked:
                check_entries(piece, seen, self.endpoint.url)
            seen += len(piece.entries)
            finish = piece.finish or finish
            usage |= piece.usage or {}
            if piece.text or piece.entries:
                yield self._part(piece, ask)
                written += len(piece.entries) or 1
            # Without a limit of the client's, the server behind knows what its context leaves.
            if ask.limit is None and written >= self.max_new_tokens:
                finish = "length"
                break
        # The server's count comes behind the end of the text, which therefore waits for it.
        yield Part(
            finish=finish,
            prompt_tokens=usage.get("prompt_tokens"),
            answer_tokens=usage.get("completion_tokens"),
        )

    def _part(self, piece: Piece, ask: Ask) -> Part:
        found = [uncertainty(entry, self.settings.vocab) for entry in piece.entries if ask.tracked]
        entries = () if ask.top is None else tuple(_cut(entry, ask.top) for entry in piece.entries)
        return Part(
            piece.text,
            # A server that sends no records sends a token a time, as far as one can know.
            len(piece.entries) or 1,
            tuple(one.entropy for one in found),
            tuple(one.bias for one in found),
            entries,
        )


def _cut(entry: Mapping[str, Any], top: int) -> dict[str, Any]:
    """A record with no more alternatives than the client asked for."""
    return {**entry, "top_logprobs": list(entry.get("top_logprobs") or ())[:top]}


def _chat_error(error: PetkitError) -> ChatError:
    if isinstance(error, Refused):
        return ChatError(400, f"the server behind refuses the request: {error}", code="upstream_refused")
    return ChatError(502, f"the server behind cannot answer: {error}", code="upstream_failed")
