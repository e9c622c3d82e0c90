"""Responses in OpenAI's shape: one object, or a stream of chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from petkit.serving.chat.routing import Exchange, told
from petkit.serving.chat.sources import Part

DONE = b"data: [DONE]\n\n"


class Shape:
    """Writes what one exchange gives.

    Args:
        exchange: the request on its way.
        model: the name that the client asked for.
    """

    def __init__(self, exchange: Exchange, model: str) -> None:
        self.exchange, self.model = exchange, model
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        options = exchange.request.stream_options
        self.with_usage = options is not None and options.include_usage

    def whole(self, parts: Sequence[Part]) -> dict[str, Any]:
        """A `chat.completion` of all parts."""
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "".join(part.text for part in parts),
                "refusal": None,
            },
            "logprobs": self._log_probs([entry for part in parts for entry in part.entries]),
            "finish_reason": parts[-1].finish,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self._usage(),
            "petkit": told(self.exchange),
        }

    def first(self) -> bytes:
        """The chunk that says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def part(self, part: Part) -> bytes:
        """The chunk of one part; nothing when it has neither text nor records."""
        if not (part.text or part.entries or part.finish):
            return b""
        delta = {"content": part.text} if part.text or part.entries else {}
        return self._chunk(delta, self._log_probs(part.entries), part.finish)

    def last(self) -> bytes:
        """The chunk with the usage, where it is wanted, and the stream's end."""
        if not self.with_usage:
            return DONE
        body = {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}
        return event({**body, "petkit": told(self.exchange)}) + DONE

    def _chunk(
        self, delta: Mapping[str, Any], log_probs: Mapping[str, Any] | None = None, finish: str | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": log_probs, "finish_reason": finish}
        body = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.with_usage:
            body["usage"] = None
        if finish:
            body["petkit"] = told(self.exchange)
        return event(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _log_probs(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        if self.exchange.request.top is None:
            return None
        return {"content": list(entries), "refusal": None}

    def _usage(self) -> dict[str, int]:
        tally = self.exchange.tally
        total = tally.prompt_tokens + tally.tokens
        return {
            "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.tokens,
            "total_tokens": total,
        }


def event(content: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode("utf-8") + b"\n\n"
