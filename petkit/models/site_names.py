"""Names of modules in short: those that differ in numbers alone, as one. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"\b\d+\b")


def patterns_of(names: Iterable[str]) -> list[str]:
    """Put names that differ in numbers alone together.

    Args:
        names: of modules, such as `layers.0.q_proj.lora`.

    Returns:
        `layers.*.q_proj.lora (12)` for each group in the order of its first name; a name alone stays whole.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_NUMBER.sub("*", name), []).append(name)
    return [own[0] if len(own) == 1 else f"{pattern} ({len(own)})" for pattern, own in groups.items()]
