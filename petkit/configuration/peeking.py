"""One key of a recipe, read before it is known which configuration the recipe is of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from petkit.configuration.reader import load_with_duplicates, parse_value
from petkit.configuration.resolution import ENVIRONMENT_PREFIX, OVERRIDE


class Peeked(NamedTuple):
    """A value and who set it, as in `Resolved.origins`."""

    value: Any
    origin: str


def peek(
    key: str,
    files: Sequence[Path | str],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Peeked | None:
    """What `resolve` will find for a key at the top of a recipe.

    Args:
        key: its name, without a section.
        files: YAML files; a later one wins. One that is missing or a pipe, which can be read only once, is
            left to `resolve`.
        overrides: texts of `--set`, which win over all else.
        environment: variables such as `PETKIT_SET__KIND=vision`; default: the process's own.

    Returns:
        The value of the highest precedence; None where nothing sets the key.

    Raises:
        ConfigError, InputError: a file cannot be read, as in `resolve`.
    """
    found = None
    for file in (one for one in files if Path(one).is_file()):
        loaded = load_with_duplicates(file)
        if key in loaded.data:
            found = Peeked(loaded.data[key], f"{loaded.path.name}:{loaded.lines.get(key, 1)}")
    variables = os.environ if environment is None else environment
    name = ENVIRONMENT_PREFIX + key.upper()
    if name in variables:
        found = Peeked(parse_value(variables[name], name), name)
    for text in overrides:
        given, equals, value = text.partition("=")
        if equals and given.strip() == key:
            found = Peeked(parse_value(value, f"--set {text}"), OVERRIDE)
    return found
