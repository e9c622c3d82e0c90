"""The stream of a chat completion as an OpenAI-compatible server sends it: lines, and what they say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from petkit.errors import PetkitError

MAX_LINE = 1 << 20
# Fields of server-sent events; a line that begins with a colon is a comment, which keeps connections open.
FIELDS = ("data:", "event:", "id:", "retry:", ":")
DONE = "[DONE]"
SHOWN = 60


@dataclass(frozen=True)
class Piece:
    """What one event of a stream says.

    Args:
        text: to append to the answer.
        entries: a record for each token of the event, as `logprobs.content` has them; empty where the server
            sends none.
        spoke: whether the event holds a part of the answer or of its reasoning.
        finish: `stop`, `length`, ... when the answer ends here.
        usage: the server's own count of tokens.
        done: the stream ends here.
    """

    text: str = ""
    entries: tuple[Mapping[str, Any], ...] = ()
    spoke: bool = False
    finish: str | None = None
    usage: Mapping[str, int] | None = None
    done: bool = False


async def read_pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[Piece]:
    """Read a stream of events.

    Args:
        chunks: the response's body.

    Returns:
        A piece for each event, up to the end of the stream.

    Raises:
        PetkitError: a line that is longer than 1 MiB or no event, or an error that the server sends.
    """
    async for line in read_lines(chunks):
        if not line:
            continue
        if not line.startswith(FIELDS):
            raise PetkitError(f"expected server-sent events (data: ...), got the line {line!r:.{SHOWN}}")
        if line.startswith("data:"):
            piece = parse_event(line.removeprefix("data:").strip())
            yield piece
            if piece.done:
                return


async def read_lines(chunks: AsyncIterator[bytes], limit: int = MAX_LINE) -> AsyncIterator[str]:
    """Split a body into lines.

    Args:
        chunks: the body.
        limit: bytes of a line at most.

    Returns:
        The lines without their ends; the last one may lack an end.

    Raises:
        PetkitError: a longer line.
    """
    held = b""
    async for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        if max(map(len, (*whole, held))) > limit:
            raise PetkitError(f"expected lines of at most {limit:,} bytes, got a longer one")
        for line in whole:
            yield _decoded(line)
    yield _decoded(held)


def parse_event(data: str) -> Piece:
    """Read the data of one event.

    Args:
        data: JSON of a chunk, or [DONE].

    Returns:
        What it says of the first choice.

    Raises:
        PetkitError: no JSON, JSON of another shape, or an error that the server sends.
    """
    if data == DONE:
        return Piece(done=True)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise PetkitError(f"expected JSON in an event, got {data!r:.{SHOWN}}") from None
    if isinstance(content, dict) and content.get("error"):
        raise PetkitError(f"the server broke off: {error_text(content)}")
    try:
        return _piece(content)
    except (AttributeError, LookupError, TypeError):
        raise PetkitError(f"expected a chat completion chunk, got {data!r:.{SHOWN}}") from None


def error_text(content: Any) -> str:
    """The message of an error in OpenAI's shape, or of one like it, in one line of at most 200 characters."""
    found = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail") or found
    return " ".join(str(found).split())[:200]


def _piece(content: dict[str, Any]) -> Piece:
    usage = _usage(content.get("usage"))
    if not content.get("choices"):
        return Piece(usage=usage)
    choice = content["choices"][0]
    delta = choice.get("delta") or {}
    text = delta.get("content") or ""
    # Servers that part reasoning from the answer name it in one of two ways.
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    entries = (choice.get("logprobs") or {}).get("content") or ()
    if not isinstance(text, str) or not all(isinstance(entry, dict) for entry in entries):
        raise TypeError
    return Piece(text, tuple(entries), bool(text or thought), choice.get("finish_reason"), usage)


def _usage(given: Any) -> dict[str, int] | None:
    """The server's counts, which must be counts."""
    if given is None:
        return None
    counts = {
        name: given[name] for name in ("prompt_tokens", "completion_tokens") if given.get(name) is not None
    }
    if not all(type(count) is int and count >= 0 for count in counts.values()):
        raise TypeError
    return counts


def _decoded(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", errors="replace")
