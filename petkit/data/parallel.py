"""Parallel text: sentences and their translations, as JSONL rows or as two files of equally many lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petkit.data.files import read_text
from petkit.data.jsonl import convert, placed_rows
from petkit.errors import ConfigError, InputError

KEYS = {"id", "source", "target"}
# Embedded sets, by the name that recipes give them.
SAMPLES = {"made-phrases": "made_phrases"}


@dataclass(frozen=True)
class SentencePair:
    """A sentence and its translation; the target is empty where none is known."""

    source: str
    target: str
    id: str = ""


def read_pairs(path: Path, skip_bad: bool = False, translated: bool = True) -> list[SentencePair]:
    """Read a JSONL file of `source`, `target` and optional `id`.

    Args:
        path: the file; line numbers stand in for missing ids.
        skip_bad: leave faulty lines out, each named in the log.
        translated: refuse rows without a target.

    Returns:
        The pairs in the order of the file.

    Raises:
        InputError: the file cannot be read, holds no row, or lines are faulty; the message names them.
    """
    return [
        SentencePair(pair.source, pair.target, pair.id or place.rpartition(":")[2])
        for place, pair in placed_pairs(path, skip_bad, translated)
    ]


def placed_pairs(
    path: Path, skip_bad: bool = False, translated: bool = True
) -> list[tuple[str, SentencePair]]:
    """Like `read_pairs`, each pair with its place, and without an id where the row gives none.

    Args:
        path, skip_bad, translated: as in `read_pairs`.

    Returns:
        Pairs of `path:line` and sentence pair.

    Raises:
        InputError: as `read_pairs`.
    """

    def parse(row: dict[str, Any]) -> SentencePair:
        return _parse(row, translated)

    found = placed_rows(path, parse, skip_bad)
    if not found:
        keys = "source and target" if translated else "source"
        raise InputError(f"{path} must hold at least one row of {keys}, got none")
    return found


def read_line_pairs(source: Path, target: Path, skip_bad: bool = False) -> list[SentencePair]:
    """Read two text files whose lines belong together, e.g. train.en and train.de.

    Args:
        source: one sentence a line.
        target: their translations, as many lines.
        skip_bad: leave pairs out of which one line is empty, each named in the log.

    Raises:
        InputError: the files have different numbers of lines, or a line is empty; the message names it.
    """
    sources, targets = (read_lines(path) for path in (source, target))
    if len(sources) != len(targets):
        raise InputError(
            f"{source} and {target} must have as many lines as each other, "
            f"got {len(sources)} and {len(targets)}"
        )
    rows = zip(sources, targets, strict=True)
    placed = [(f"{source}:{i}", pair) for i, pair in enumerate(rows, 1)]
    made = convert(placed, lambda pair: _pair(pair[0], pair[1], True), skip_bad)
    return [SentencePair(pair.source, pair.target, place.rpartition(":")[2]) for place, pair in made]


def read_lines(path: Path) -> list[str]:
    """The lines of a text; blank ones count, for lines of parallel files belong together by their numbers.

    Raises:
        InputError: the file cannot be read, or is no UTF-8.
    """
    return read_text(path).removesuffix("\n").split("\n")


def _parse(row: dict[str, Any], translated: bool) -> SentencePair:
    unknown = sorted(set(row) - KEYS)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; there are {', '.join(sorted(KEYS))}")
    pair = _pair(row.get("source"), row.get("target", None if translated else ""), translated)
    name = row.get("id", "")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError(f"id must be a text or a whole number, got {name!r}")
    return SentencePair(pair.source, pair.target, str(name))


def _pair(source: object, target: object, translated: bool) -> SentencePair:
    for name, text in (("source", source), ("target", target)):
        if not isinstance(text, str) or (not text.strip() and (translated or name == "source")):
            raise ValueError(f"{name} must be a text that is not empty, got {text!r}")
    return SentencePair(" ".join(str(source).split()), " ".join(str(target).split()))


def sample_pairs(name: str, split: str) -> Path:
    """The file of an embedded set.

    Args:
        name: of the set, such as made-phrases.
        split: train, validation or test.

    Returns:
        A JSONL file inside the package.

    Raises:
        ConfigError: there is no such set.
    """
    if name not in SAMPLES:
        raise ConfigError(f"data.sample must be one of {', '.join(SAMPLES)}, got {name!r}")
    return Path(__file__).parent / "samples" / SAMPLES[name] / f"{split}.jsonl"
