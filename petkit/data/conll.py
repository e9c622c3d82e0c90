"""Tagged sentences in columns: one word a line, a blank line between sentences (the CoNLL tasks' format)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from petkit.data.files import read_text
from petkit.errors import ConfigError, InputError

DOCSTART = "-DOCSTART-"
SAMPLES = {"made-names": "made_names"}
# Not str.split: a no-break space may stand inside a word.
_BLANKS = re.compile(r"[ \t]+")


@dataclass(frozen=True)
class Columns:
    """How a line divides, and which lines are no words."""

    word: int = 0
    """Number of the word's column, from 0; negative ones count from the end."""

    tag: int = -1
    """Number of the tag's column."""

    separator: str | None = None
    """Text between columns; None takes any run of spaces and tabs."""

    comment: str | None = None
    """Lines that begin with this text are left out; None keeps all, since a word may be `#`."""

    docstart: bool = True
    """Lines that begin with -DOCSTART- divide documents and are left out."""


@dataclass(frozen=True)
class TaggedSentence:
    """The words of a sentence with their tags, and where each stands."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    file: str
    lines: tuple[int, ...]

    def place(self, position: int) -> str:
        """`file:line` of a word."""
        return f"{self.file}:{self.lines[position]}"


class PlacedWords(NamedTuple):
    """The words of a sentence without tags, and the line of the file that they begin at."""

    words: tuple[str, ...]
    line: int


def read_conll(path: Path, columns: Columns) -> list[TaggedSentence]:
    """Read a file of tagged sentences.

    Args:
        path: UTF-8 text.
        columns: how a line divides.

    Returns:
        The sentences, in order; at least one.

    Raises:
        InputError: the file holds no sentence, or a line has other columns than the first, fewer than are
            asked for, an empty word or tag, or one column for both; the message names file and line.
    """
    sentences = [_tagged(str(path), rows, columns) for rows in _blocks(path, columns)]
    if not sentences:
        raise InputError(f"{path} must hold at least one sentence of words and tags, got none")
    return sentences


def read_words(path: Path) -> list[PlacedWords]:
    """Read sentences without tags, one a line, words apart by spaces or tabs.

    Args:
        path: UTF-8 text; blank lines are passed over.

    Returns:
        The words of each sentence, and their line; at least one sentence.

    Raises:
        InputError: the file cannot be read, or holds no word.
    """
    found = [PlacedWords(tuple(_BLANKS.split(line)), number) for number, line in _stripped(path) if line]
    if not found:
        raise InputError(f"{path} must hold at least one sentence, got none")
    return found


def read_word_column(path: Path, columns: Columns) -> list[PlacedWords]:
    """Read the words alone of a file in columns, with or without tags.

    Args:
        path: UTF-8 text.
        columns: how a line divides; `tag` is not looked at.

    Returns:
        The words of each sentence, and the line of the first; at least one sentence.

    Raises:
        InputError: as `read_conll`.
    """
    alone = Columns(columns.word, columns.word, columns.separator, columns.comment, columns.docstart)
    return [PlacedWords(sentence.words, sentence.lines[0]) for sentence in read_conll(path, alone)]


def sample_file(name: str, split: str) -> Path:
    """The file of an embedded set.

    Args:
        name: of the set, such as made-names.
        split: train, validation or test.

    Returns:
        A file inside the package.

    Raises:
        ConfigError: there is no such set.
    """
    if name not in SAMPLES:
        raise ConfigError(f"data.sample must be one of {', '.join(SAMPLES)}, got {name!r}")
    return Path(__file__).parent / "samples" / SAMPLES[name] / f"{split}.conll"


def _stripped(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines without blanks at their ends."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        yield number, line.strip(" \t\r")


def _blocks(path: Path, columns: Columns) -> Iterator[list[tuple[int, list[str]]]]:
    """The rows of each sentence, with their line numbers."""
    block: list[tuple[int, list[str]]] = []
    first: tuple[int, int] | None = None
    for number, line in _lines(path, columns):
        if not line:
            if block:
                yield block
            block = []
            continue
        cells = _BLANKS.split(line) if columns.separator is None else line.split(columns.separator)
        first = first or (number, len(cells))
        _check_width(f"{path}:{number}", len(cells), first)
        block.append((number, cells))
    if block:
        yield block


def _lines(path: Path, columns: Columns) -> Iterator[tuple[int, str]]:
    """The lines that count; one that divides documents stands as a blank one."""
    raw = _stripped(path) if columns.separator is None else _kept(path)
    for number, line in raw:
        if columns.docstart and line.startswith(DOCSTART):
            yield number, ""
        elif columns.comment is None or not line.startswith(columns.comment):
            yield number, line


def _kept(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, in which a separator may stand at an end; blank lines are empty."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        yield number, line.rstrip("\r") if line.strip() else ""


def _check_width(place: str, width: int, first: tuple[int, int]) -> None:
    if width != first[1]:
        raise InputError(
            f"{place} must have {first[1]} columns as line {first[0]} has, got {width}: correct the line, or "
            "set data.separator"
        )


def _tagged(file: str, rows: Sequence[tuple[int, list[str]]], columns: Columns) -> TaggedSentence:
    words = tuple(_cell(f"{file}:{n}", cells, columns.word, "data.word_column") for n, cells in rows)
    tags = tuple(_cell(f"{file}:{n}", cells, columns.tag, "data.tag_column") for n, cells in rows)
    if columns.word != columns.tag:
        _check_apart(f"{file}:{rows[0][0]}", len(rows[0][1]), columns)
    return TaggedSentence(words, tags, file, tuple(number for number, _ in rows))


def _check_apart(place: str, width: int, columns: Columns) -> None:
    """Refuse two numbers of one column, such as 0 and -1 of a line that has no other."""
    if columns.word % width == columns.tag % width:
        count = "only 1 column" if width == 1 else f"{width} columns"
        raise InputError(
            f"{place} has {count}, so that word and tag would be the same column: give each word its tag, or "
            "set data.separator, data.word_column or data.tag_column"
        )


def _cell(place: str, cells: Sequence[str], column: int, key: str) -> str:
    if not -len(cells) <= column < len(cells):
        raise InputError(f"{place} must have a column {column} ({key}), got {len(cells)} columns")
    value = cells[column].strip(" \t")
    if not value:
        raise InputError(f"{place} must have text in column {column} ({key}), got none")
    return value
