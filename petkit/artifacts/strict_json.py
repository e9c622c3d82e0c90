"""JSON as the standard has it: what Python's reader lets pass besides is refused. Torch-free."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_json(raw: bytes) -> Any:
    """Parse UTF-8 JSON in which no key occurs twice and every number is finite.

    Args:
        raw: the file's content; its size is bounded by the caller.

    Returns:
        Plain values.

    Raises:
        ValueError: not UTF-8, not JSON, a duplicate key, NaN, an infinity or a number too large for float64.
        RecursionError: nested too deeply.
    """
    return json.loads(
        raw.decode("utf-8"),
        object_pairs_hook=_unique,
        parse_constant=_no_constant,
        parse_float=_finite,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal keys, two readers might take different ones.
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    # 1e999 is JSON by its letters, and infinity as a float.
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value
