"""Rows of JSONL files, checked one by one: a fault names its file and line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from petkit.errors import InputError

log = logging.getLogger(__name__)

Row = TypeVar("Row")


def read_rows(path: Path, parse: Callable[[dict[str, Any]], Row], skip_bad: bool = False) -> list[Row]:
    """Read a JSONL file, one object a line; blank lines are passed over.

    Args:
        path: The file.
        parse: Makes a row of one object; raises ValueError with what was expected and what came.
        skip_bad: Leave faulty lines out, each named in the log, instead of stopping at the first.

    Returns:
        The rows in the order of the file.

    Raises:
        InputError: The file is not UTF-8 text, or a line is faulty.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(parse(parse_object(line)))
        except (ValueError, RecursionError) as error:
            fault = f"{path}:{number}: {' '.join(str(error).split())}"
            if not skip_bad:
                raise InputError(f"{fault}; repair the line or set data.skip_bad") from error
            log.warning("left out: %s", fault)
    return rows


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
