"""Change values inside the text of a recipe, keeping its comments and order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from petkit.configuration.reader import parse_yaml
from petkit.errors import ConfigError

_ENTRY = re.compile(r"^(?P<key>\s*[\w-]+:)(?P<value>[^#]*?)(?P<comment>\s*(?:#.*)?)$")


def edit_yaml(text: str, changes: Mapping[str, str]) -> str:
    """Set keys of a block-style recipe.

    Args:
        text: the recipe.
        changes: dotted key to the new value, as YAML text. A key that is not there is added to its section,
            which must be there.

    Returns:
        The recipe with these values; every other line as it was.

    Raises:
        ConfigError: the key holds a value of several lines, or its section is missing.
    """
    for key, value in changes.items():
        lines = text.splitlines()
        numbers = parse_yaml(text, Path("recipe")).lines
        section, _, name = key.rpartition(".")
        if key in numbers:
            match = _ENTRY.match(lines[numbers[key] - 1])
            if match is None or not match["value"].strip():
                raise ConfigError(
                    f"{key} must hold a value on one line to be changed in place; edit it by hand"
                )
            lines[numbers[key] - 1] = f"{match['key']} {value}{match['comment']}"
        elif not section:
            lines.append(f"{name}: {value}")
        elif section in numbers:
            lines.insert(numbers[section], f"{'  ' * (key.count('.'))}{name}: {value}")
        else:
            raise ConfigError(f"{key} cannot be added: the recipe has no section {section}")
        text = "\n".join(lines) + "\n"
    return text
