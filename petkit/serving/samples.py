"""What to predict on: pictures, folders of them, texts, and JSONL rows that may name their adapter."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from petkit.data.chat import Chat, parse_conversation
from petkit.data.files import placed_lines, refuse_url
from petkit.data.jsonl import HALF_PAIR, Fault, placed_rows
from petkit.data.listings import IMAGE_SUFFIXES
from petkit.errors import InputError

# Says why an adapter's name cannot be used, or None when it can.
AdapterCheck = Callable[[str], str | None]


@dataclass(frozen=True)
class Sample:
    """One input.

    Args:
        name: what to call it: its path, its text, or the last message of a conversation.
        image: the picture's file.
        text: the text or prompt.
        chat: a conversation, for language models.
        adapter: which adapter of a bank to use.
        row: the key `id` of its row or, without one, FILE:LINE; None for what is no row of a file.
    """

    name: str
    image: Path | None = None
    text: str | None = None
    chat: Chat | None = None
    adapter: str | None = None
    row: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """An input of which nothing could be predicted.

    Args:
        name: what to call it; FILE:LINE for a row that could not be read.
        reason: what was expected and what came.
        row: as in Sample.
    """

    name: str
    reason: str
    row: str | None = None

    def payload(self) -> dict[str, str]:
        """The same as JSON values."""
        row = {} if self.row is None else {"row": self.row}
        return {"input": self.name, **row, "reason": self.reason}


def read_samples(
    inputs: Sequence[str],
    task: str,
    check_adapter: AdapterCheck | None = None,
    skip_bad: bool = False,
    left_out: list[LeftOut] | None = None,
) -> list[Sample]:
    """Find the inputs that a command line names.

    Args:
        inputs: for images: files, folders, and JSONL files of {"image": path}; for text: the text itself,
            .txt files of one text a line, and JSONL files of {"text": ...} (or {"messages": [...]}, for
            language models). Paths in a JSONL file are relative to it.
        task: image_classification, text_classification or causal_lm.
        check_adapter: for a bank, whose rows name their adapter under "adapter"; None without a bank.
        skip_bad: leave faulty rows out, each named in the log.
        left_out: is given those rows too.

    Returns:
        The inputs in order; folders sorted by path.

    Raises:
        InputError: a path that is missing or of no use, a URL, a faulty row, or no input at all.
    """
    faults: list[Fault] = []
    samples: list[Sample] = []
    for text in inputs:
        suffix = Path(text).suffix.lower()
        if task == "image_classification" or suffix in (".jsonl", ".txt"):
            refuse_url(text, "INPUT")
        if suffix == ".jsonl":
            samples += _rows(Path(text), task, check_adapter, skip_bad, faults)
        elif check_adapter is not None:
            raise InputError(f"INPUT must be a .jsonl file whose rows name their adapter, got {text}")
        elif task == "image_classification":
            samples += _images(Path(text))
        else:
            samples += _lines(Path(text)) if suffix == ".txt" else [_text(text)]
    if left_out is not None:
        left_out += [LeftOut(fault.place, fault.reason) for fault in faults]
    if not samples:
        raise InputError(
            f"at least one input is needed, got none in {', '.join(inputs) or 'the command line'}"
        )
    return samples


def _images(path: Path) -> list[Sample]:
    if os.path.isfile(path):
        return [Sample(str(path), image=path)]
    if not os.path.isdir(path):
        raise InputError(f"INPUT {path} must be a picture, a folder or a .jsonl file, got {_what(path)}")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"INPUT {path} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    return [Sample(str(file), image=file) for file in found]


def _what(path: Path) -> str:
    return "a folder, pipe or device" if os.path.exists(path) else "no such file"


def _text(text: str) -> Sample:
    # A shell may pass bytes that are no UTF-8, which Python keeps as halves of surrogate pairs.
    if not text.strip() or HALF_PAIR.search(text):
        raise InputError(f"INPUT must be UTF-8 text that is not empty, got {text!r:.60}")
    return Sample(text, text=text)


def _lines(path: Path) -> list[Sample]:
    return [Sample(line, text=line, row=place) for place, line in placed_lines(path)]


def _rows(
    path: Path, task: str, check_adapter: AdapterCheck | None, skip_bad: bool, left_out: list[Fault]
) -> list[Sample]:
    if not os.path.isfile(path):
        raise InputError(f"INPUT {path} must be a JSONL file, got {_what(path)}")

    def parse(row: dict[str, Any]) -> Sample:
        return _sample(row, path, task, check_adapter)

    try:
        found = placed_rows(path, parse, skip_bad, left_out)
    except InputError as error:
        raise InputError(str(error).replace("set data.skip_bad", "pass --skip-bad")) from error
    return [_placed(sample, place) for place, sample in found]


def _placed(sample: Sample, place: str) -> Sample:
    return replace(sample, row=sample.row or place, name=sample.name or place)


def _sample(row: dict[str, Any], path: Path, task: str, check_adapter: AdapterCheck | None) -> Sample:
    adapter, key = _adapter(row.get("adapter"), check_adapter), _id(row.get("id"))
    if task == "image_classification":
        image = _string(row, "image")
        refuse_url(image, "image")
        return Sample(image, image=path.parent / image, adapter=adapter, row=key)
    if task == "causal_lm" and "messages" in row:
        chat = parse_conversation(row)
        return Sample(chat.messages[-1].get("content") or "", chat=chat, row=key)
    text = _string(row, "text")
    return Sample(text, text=text, adapter=adapter, row=key)


def _id(value: Any) -> str | None:
    named = isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
    return str(value) if named else None


def _adapter(name: Any, check: AdapterCheck | None) -> str | None:
    if check is None:
        if name is not None:
            raise ValueError("adapter has an effect with --bank only: pass --bank FOLDER, or remove the key")
        return None
    if not isinstance(name, str):
        raise ValueError(f"adapter must be the name of an adapter in the bank, got {name!r}")
    fault = check(name)
    if fault:
        raise ValueError(fault)
    return name


def _string(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} must be a string that is not empty, got {value!r:.60}")
    return value
