"""Text from tokens as they come: whole characters only, and nothing of a text that ends the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

HALF_CHARACTER = "\ufffd"


class Detokenizer:
    """Turns ids into text one at a time; what it gives adds up to the text of all ids.

    Args:
        tokenizer: of transformers; special tokens have no text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids = tokenizer, list[int]()
        # The text of ids[start:read] is out already; it is decoded again since spaces depend on neighbours.
        self._start = self._read = 0

    def add(self, token: int) -> str:
        """Take an id.

        Returns:
            The text that is certain now: empty while a character lacks bytes.
        """
        self._ids.append(token)
        new = self._new()
        return "" if new.endswith(HALF_CHARACTER) else self._given(new)

    def rest(self) -> str:
        """The text of bytes that never became a character."""
        return self._given(self._new())

    def _new(self) -> str:
        before, now = self._decoded(self._start, self._read), self._decoded(self._start, len(self._ids))
        return now[len(before) :]

    def _given(self, new: str) -> str:
        if new:
            self._start, self._read = self._read, len(self._ids)
        return new

    def _decoded(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class StopFilter:
    """Cuts a stream of text before the first of some texts, none of which is ever given out in part.

    Args:
        stops: the texts, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.hit = tuple(stops), "", False

    def add(self, text: str) -> str:
        """Take more text.

        Returns:
            What cannot be the beginning of a stop; once `hit` is set, nothing more is to come.
        """
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.hit = True
            given, self._held = self._held[: min(places)], ""
            return given
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        end = len(self._held) - keep
        given, self._held = self._held[:end], self._held[end:]
        return given

    def rest(self) -> str:
        """What was held back and turned out to be no stop."""
        given, self._held = self._held, ""
        return given

    def _overlap(self, stop: str) -> int:
        """How much of the text's end is the beginning of a stop."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if stop.startswith(self._held[-n:])), 0)


class TokenNames:
    """Texts and bytes of single tokens, as `logprobs` shows them.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        core = getattr(tokenizer, "backend_tokenizer", None)
        kinds = str(json.loads(core.to_str()).get("decoder")) if core is not None else ""
        self._byte_level, self._byte_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self.of = lru_cache(maxsize=65_536)(self._of)

    def _of(self, token: int) -> tuple[str, tuple[int, ...] | None]:
        """The token's text, and its bytes; a special token stands for no bytes."""
        if token in self._special:
            return str(self._tokenizer.convert_ids_to_tokens(token)), None
        data = self._bytes(token)
        return data.decode("utf-8", errors="replace"), tuple(data)

    def _bytes(self, token: int) -> bytes:
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if self._byte_level and all(sign in _signs() for sign in name):
            return bytes(_signs()[sign] for sign in name)
        if self._byte_fallback:
            if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
                return bytes([int(name[3:5], 16)])
            return name.replace("\u2581", " ").encode("utf-8", errors="replace")
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text.encode("utf-8", errors="replace")


@lru_cache(maxsize=1)
def _signs() -> dict[str, int]:
    """The printable sign that byte-level tokenizers write for each byte.

    Source:
        GPT-2's byte-level BPE: printable Latin-1 stands for itself, the 68 other bytes for U+0100 and on.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}
