"""What to predict on: pictures, folders of them, texts, and JSONL rows that may name their adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petkit.data.jsonl import read_rows
from petkit.data.listings import IMAGE_SUFFIXES
from petkit.errors import InputError

# Says why an adapter's name cannot be used, or None when it can.
AdapterCheck = Callable[[str], str | None]


@dataclass(frozen=True)
class Sample:
    """One input.

    Args:
        name: what to call it: its path, FILE:LINE, or the text.
        image: the picture's file.
        text: the text or prompt.
        messages: a conversation, for language models.
        adapter: which adapter of a bank to use.
    """

    name: str
    image: Path | None = None
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    adapter: str | None = None


def read_samples(
    inputs: Sequence[str], task: str, check_adapter: AdapterCheck | None = None, skip_bad: bool = False
) -> list[Sample]:
    """Find the inputs that a command line names.

    Args:
        inputs: for images: files, folders, and JSONL files of {"image": path}; for text: the text itself,
            .txt files of one text a line, and JSONL files of {"text": ...} (or {"messages": [...]}, for
            language models). Paths in a JSONL file are relative to it.
        task: image_classification, text_classification or causal_lm.
        check_adapter: for a bank, whose rows name their adapter under "adapter"; None without a bank.
        skip_bad: leave faulty rows out, each named in the log.

    Returns:
        The inputs in order; folders sorted by path.

    Raises:
        InputError: a path that is missing or of no use, a faulty row, or no input at all.
    """
    samples: list[Sample] = []
    for text in inputs:
        path = Path(text)
        if path.suffix.lower() == ".jsonl":
            samples += _rows(path, task, check_adapter, skip_bad)
        elif check_adapter is not None:
            raise InputError(f"INPUT must be a .jsonl file whose rows name their adapter, got {text}")
        elif task == "image_classification":
            samples += _images(path)
        else:
            samples += _texts(text)
    if not samples:
        raise InputError(
            f"at least one input is needed, got none in {', '.join(inputs) or 'the command line'}"
        )
    return samples


def _images(path: Path) -> list[Sample]:
    if path.is_file():
        return [Sample(str(path), image=path)]
    if not path.is_dir():
        raise InputError(f"INPUT {path} must be a picture, a folder or a .jsonl file, got no such file")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"INPUT {path} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    return [Sample(str(file), image=file) for file in found]


def _texts(text: str) -> list[Sample]:
    path = Path(text)
    if path.suffix.lower() != ".txt":
        return [Sample(text, text=text)]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"INPUT {path} cannot be read as UTF-8 text: {error}") from error
    return [Sample(f"{path}:{number}", text=line) for number, line in enumerate(lines, 1) if line.strip()]


def _rows(path: Path, task: str, check_adapter: AdapterCheck | None, skip_bad: bool) -> list[Sample]:
    if not path.is_file():
        raise InputError(f"INPUT {path} must be a JSONL file, got no such file")

    def parse(row: dict[str, Any]) -> Sample:
        return _sample(row, path, task, check_adapter)

    try:
        return read_rows(path, parse, skip_bad)
    except InputError as error:
        raise InputError(str(error).replace("set data.skip_bad", "pass --skip-bad")) from error


def _sample(row: dict[str, Any], path: Path, task: str, check_adapter: AdapterCheck | None) -> Sample:
    adapter = _adapter(row.get("adapter"), check_adapter)
    if task == "image_classification":
        image = _string(row, "image")
        return Sample(image, image=path.parent / image, adapter=adapter)
    if task == "causal_lm" and "messages" in row:
        messages = row["messages"]
        return Sample(str(messages)[:60], messages=_messages(messages))
    text = _string(row, "text")
    return Sample(text, text=text, adapter=adapter)


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


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    good = isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in value
    )
    if not good or not value:
        raise ValueError("messages must be a list of objects with the strings role and content")
    return tuple(value)
