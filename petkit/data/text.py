"""Labelled texts: JSONL lines of {"text": ..., "label": ...}."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledText:
    """One text with its class name; a class given as a number counts from 0."""

    text: str
    label: str
    numbered: bool


def parse_text(row: dict[str, Any]) -> LabelledText:
    """Check one row.

    Args:
        row: The keys `text`, a string that is not empty, and `label`, a string or a number of 0 or more;
            other keys are ignored.

    Returns:
        The labelled text.

    Raises:
        ValueError: A key is missing or of another type.
    """
    text, label = row.get("text"), row.get("label")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text must be a string that is not empty, got {_short(text)}")
    if isinstance(label, bool) or not isinstance(label, (int, str)) or label == "":
        raise ValueError(f"label must be a class name or a number of 0 or more, got {_short(label)}")
    if isinstance(label, int) and label < 0:
        raise ValueError(f"label must be a class name or a number of 0 or more, got {label}")
    return LabelledText(text, str(label), isinstance(label, int))


def encode_texts(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Tokenise texts with the model's special tokens; longer ones are cut at the end and counted in the log.

    Args:
        texts: Any texts.
        tokenizer: A transformers tokenizer.
        max_length: Tokens kept, special ones included; fewer where the model takes no more.

    Returns:
        Token numbers per text.
    """
    max_length = min(max_length, tokenizer.model_max_length)
    encoded: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    at_limit = [index for index, ids in enumerate(encoded) if len(ids) >= max_length]
    # Only texts at the limit can have been cut; the others need no second look.
    full = tokenizer([texts[index] for index in at_limit], verbose=False)["input_ids"] if at_limit else []
    cut = sum(len(ids) > max_length for ids in full)
    if cut:
        log.warning(
            "%d of %d texts are longer than %d tokens (data.max_length, or the model's limit) and were cut",
            cut,
            len(texts),
            max_length,
        )
    return encoded


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
