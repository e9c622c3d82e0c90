"""Texts that end an answer while it is written token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Tokens without text of their own, and a space that decoding drops before the first token.
SLACK = 4


@dataclass(frozen=True)
class Stops:
    """Ends an answer where one of some texts is complete.

    Args:
        texts: none empty.
        decode: the text of ids.
    """

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def complete(self, tokens: Sequence[int]) -> bool:
        """Whether the last of an answer's tokens completes a text; no earlier one did."""
        # A token with text has a byte at least, so that the end of the answer shows every text.
        longest = max((len(text.encode()) for text in self.texts), default=0)
        end = self.decode(tokens[-longest - SLACK :]) if longest else ""
        return any(text in end for text in self.texts)

    def cut(self, text: str) -> str:
        """An answer before the first of the texts."""
        places = [place for stop in self.texts if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text
