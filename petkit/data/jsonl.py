"""Rows of JSONL files, checked one by one: every fault names its file and line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from petkit.data.files import read_text
from petkit.errors import InputError

log = logging.getLogger(__name__)

Row = TypeVar("Row")
Made = TypeVar("Made")

# Faulty lines that a message names; it counts the others.
SHOWN = 20


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
    path: Path, parse: Callable[[dict[str, Any]], Row], skip_bad: bool = False
) -> list[tuple[str, Row]]:
    """Like `read_rows`, each row with its place, for rows that are worked on further.

    Args:
        path, parse, skip_bad: As in `read_rows`.

    Returns:
        Pairs of `path:line` and row.

    Raises:
        InputError: As `read_rows`.
    """
    lines = read_text(path).split("\n")
    placed = ((f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())
    return convert(placed, lambda line: parse(parse_object(line)), skip_bad)


def convert(
    placed: Iterable[tuple[str, Row]], make: Callable[[Row], Made], skip_bad: bool = False
) -> list[tuple[str, Made]]:
    """Make something of every row, and name the rows of which nothing can be made.

    Args:
        placed: Pairs of `path:line` and row.
        make: Raises ValueError with what was expected and what came.
        skip_bad: Leave such rows out, each named in the log.

    Returns:
        Pairs of `path:line` and what was made.

    Raises:
        InputError: As `read_rows`.
    """
    made, faults = [], []
    for place, row in placed:
        try:
            made.append((place, make(row)))
        except (ValueError, RecursionError) as error:
            faults.append(f"{place}: {' '.join(str(error).split())}")
    if faults and not skip_bad:
        raise InputError(_refusal(faults))
    for fault in faults:
        log.warning("left out: %s", fault)
    return made


def _refusal(faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return f"{faults[0]}; repair the line or set data.skip_bad"
    rest = f"and {len(faults) - SHOWN} more; " if len(faults) > SHOWN else ""
    return "\n".join([*faults[:SHOWN], f"{rest}repair the {len(faults)} lines or set data.skip_bad"])


def parse_object(text: str) -> dict[str, Any]:
    """Parse one JSON object, refusing a key that comes twice.

    Args:
        text: JSON.

    Returns:
        The object.

    Raises:
        ValueError: Not JSON, not an object, or a duplicate key.
    """
    value = json.loads(text, object_pairs_hook=_unique_keys)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found
