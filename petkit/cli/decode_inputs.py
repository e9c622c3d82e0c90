"""The sentences that `petkit decode` translates: of files and of its command line, each with its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from petkit.cli import output
from petkit.cli.sentences import words_of
from petkit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from petkit.methods.nart_crf.decoding import Translator

ROWS, LINES = ".jsonl", ".txt"
KINDS = f"{ROWS} (rows) or {LINES} (a sentence a line)"


@dataclass(frozen=True)
class Sentence:
    """One sentence, and where it came from."""

    source: str
    """Empty for a line that is blank, or left out: an empty line is written in its place."""

    id: str
    """The row's own, or its line's number; behind its file's name where there are several files."""

    place: str
    """For messages: `file:line`, or `sentence 3` of the command line."""

    is_row: bool = False
    """Whether it is of a file of rows, in which the lines' numbers mean nothing."""


def is_file(name: str) -> bool:
    """Whether an INPUT names a file that sentences are read from, by its ending."""
    return Path(name).suffix.lower() in (ROWS, LINES)


def read_sentences(names: Sequence[str], skip_bad: bool) -> list[Sentence]:
    """Read every INPUT.

    Args:
        names: files, and sentences.
        skip_bad: leave faulty rows out, each named in the log.

    Returns:
        The sentences in order, blank lines of text files among them.

    Raises:
        ConfigError, InputError: an input holds no sentence, or a row is faulty; the message names it.
    """
    several = sum(map(is_file, names)) > 1
    found: list[Sentence] = []
    spoken = 0
    for name in names:
        if is_file(name):
            found += _of_file(name, skip_bad, several)
        elif os.path.isfile(name):
            raise ConfigError(f"{name} must end in {KINDS}, got {Path(name).suffix or 'no ending'}")
        else:
            spoken += 1
            found.append(Sentence(" ".join(words_of(name, KINDS).split()), "", f"sentence {spoken}"))
    return found


def without_long(given: Sequence[Sentence], translator: Translator, skip_bad: bool) -> list[Sentence]:
    """Refuse sentences that are longer than the model reads, or leave them out.

    Args:
        given: sentences and blank lines.
        translator: counts their subwords.
        skip_bad: leave them out, counted in the log; of text files an empty line stays.

    Returns:
        What is left.

    Raises:
        InputError: a sentence is too long, or with `skip_bad` every one.
    """
    asked = [one for one in given if one.source]
    counts = zip(asked, translator.lengths([one.source for one in asked]), strict=True)
    long = {one: count for one, count in counts if count > translator.most}
    if not long:
        return list(given)
    first = next(iter(long))
    if not skip_bad:
        raise InputError(_refusal(first, long[first], len(long) - 1, translator.most))
    if all(one in long for one in asked):
        raise InputError(
            f"each sentence has more subwords than the {translator.most} that the model reads with its end, "
            f"the first is {first.place}: divide them"
        )
    output.warn(
        f"{len(long)} of {len(asked)} sentences left out, with more subwords than the {translator.most} that "
        f"the model reads: the first is {first.place}"
    )
    left = (replace(one, source="") if one in long else one for one in given)
    return [one for one in left if one.source or not one.is_row]


def _refusal(first: Sentence, count: int, others: int, most: int) -> str:
    text = f"{first.place} has {count} subwords with its end, the model reads {most} at most"
    if others:
        text += f" ({others} more {'is' if others == 1 else 'are'} too long)"
    advice = "divide it" if not others else "divide them"
    # A sentence of the command line is left out by not writing it.
    return f"{text}: {advice}" + ("" if first.id == "" else ", or pass --skip-bad")


def _of_file(name: str, skip_bad: bool, several: bool) -> Iterator[Sentence]:
    for place, id_, source, is_row in _lines(name, skip_bad):
        number = place if several else place.rpartition(":")[2]
        yield Sentence(source, id_ or number, place, is_row)


def _lines(name: str, skip_bad: bool) -> Iterator[tuple[str, str, str, bool]]:
    """Place, own id, sentence and whether it is a row."""
    from petkit.data.parallel import placed_pairs, read_lines

    path = Path(name)
    if path.suffix.lower() == LINES:
        lines = read_lines(path)
        if not any(line.strip() for line in lines):
            raise InputError(f"{path} must hold at least one sentence, got none")
        yield from ((f"{path}:{i}", "", " ".join(line.split()), False) for i, line in enumerate(lines, 1))
        return
    try:
        found = placed_pairs(path, skip_bad, translated=False)
    except InputError as error:
        # The key is a recipe's, and here is none.
        raise InputError(str(error).replace("set data.skip_bad", "pass --skip-bad")) from error
    yield from ((place, pair.id, pair.source, True) for place, pair in found)
