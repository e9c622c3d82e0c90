"""Rows of JSONL files, checked one by one: every fault names its file and line."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from petkit.data.files import placed_lines
from petkit.errors import InputError

log = logging.getLogger(__name__)

Row = TypeVar("Row")
Made = TypeVar("Made")

# Faulty lines that a message names; it counts the others.
SHOWN = 20
HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Fault:
    """A row of which nothing can be made: `path:line`, and what was expected and what came."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def read_rows(path: Path, parse: Callable[[dict[str, Any]], Row], skip_bad: bool = False) -> list[Row]:
    """Read a JSONL file, one object a line; blank lines are passed over.

    Args:
        path: The file.
        parse: Makes a row of one object; raises ValueError with what was expected and what came.
        skip_bad: Leave faulty lines out, each named in the log, instead of refusing the file.

    Returns:
        The rows in the order of the file.

    Raises:
        InputError: The file is no regular file of UTF-8 text, or lines are faulty: one line of the message
            for each of the first 20.
    """
    return [row for _, row in placed_rows(path, parse, skip_bad)]


def placed_rows(
    path: Path,
    parse: Callable[[dict[str, Any]], Row],
    skip_bad: bool = False,
    left_out: list[Fault] | None = None,
) -> list[tuple[str, Row]]:
    """Like `read_rows`, each row with its place, for rows that are worked on further.

    Args:
        path, parse, skip_bad: As in `read_rows`.
        left_out: Is given what `skip_bad` leaves out.

    Returns:
        Pairs of `path:line` and row.

    Raises:
        InputError: As `read_rows`.
    """
    return convert(placed_lines(path), lambda line: parse(parse_object(line)), skip_bad, left_out)


def strict_rows(path: Path, parse: Callable[[dict[str, Any]], Row]) -> list[tuple[str, Row]]:
    """Like `placed_rows`, of a file none of whose lines may be left out."""
    try:
        return placed_rows(path, parse)
    except InputError as error:
        raise InputError(str(error).replace(" or set data.skip_bad", "")) from error


def convert(
    placed: Iterable[tuple[str, Row]],
    make: Callable[[Row], Made],
    skip_bad: bool = False,
    left_out: list[Fault] | None = None,
) -> list[tuple[str, Made]]:
    """Make something of every row, and name the rows of which nothing can be made.

    Args:
        placed: Pairs of `path:line` and row.
        make: Raises ValueError with what was expected and what came.
        skip_bad: Leave such rows out, each named and all of them counted in the log.
        left_out: Is given those rows too.

    Returns:
        Pairs of `path:line` and what was made.

    Raises:
        InputError: As `read_rows`.
    """
    made: list[tuple[str, Made]] = []
    faults: list[Fault] = []
    for place, row in placed:
        try:
            made.append((place, make(row)))
        except (ValueError, RecursionError) as error:
            faults.append(Fault(place, " ".join(str(error).split())))
    if faults and not skip_bad:
        raise InputError(_refusal(faults))
    for fault in faults:
        log.warning("left out: %s", fault)
    if faults:
        log.warning("%d of %d lines are faulty and left out", len(faults), len(faults) + len(made))
    if left_out is not None:
        left_out += faults
    return made


def _refusal(faults: Sequence[Fault]) -> str:
    if len(faults) == 1:
        return f"{faults[0]}; repair the line or set data.skip_bad"
    rest = f"and {len(faults) - SHOWN} more; " if len(faults) > SHOWN else ""
    return "\n".join(
        [
            *map(str, faults[:SHOWN]),
            f"{rest}repair the {len(faults)} lines or set data.skip_bad",
        ]
    )


def parse_object(text: str) -> dict[str, Any]:
    """Parse one JSON object, refusing a key that comes twice and text that is none.

    Args:
        text: JSON.

    Returns:
        The object.

    Raises:
        ValueError: Not JSON, not an object, a duplicate key, or half of a surrogate pair, which stands for no
            character and which no tokenizer takes.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    # A file of UTF-8 can hold half a pair in no other way than as an escape.
    if "\\u" in text:
        _refuse_half_pairs(value)
    return value


def _refuse_half_pairs(row: dict[str, Any]) -> None:
    for key, value in row.items():
        half = HALF_PAIR.search(json.dumps([key, value], ensure_ascii=False))
        if half:
            raise ValueError(
                f"{ascii(key)[1:-1]} must hold whole characters, got the half \\u{ord(half[0]):04x} of a "
                "surrogate pair: write both halves, or neither"
            )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found
