"""An experiment's wrong keys and values, in the words of a recipe's: file, line, nearest key, all at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from petkit.configuration import Config, LoadedYaml, messages, resolve
from petkit.configuration.sections import KeyPath, section_of
from petkit.errors import ConfigError
from petkit.methods.binary_adapter.config import BinaryAdapterConfig

AnyConfig = TypeVar("AnyConfig", bound=Config)


def validate(model: type[AnyConfig], loaded: LoadedYaml) -> AnyConfig:
    """Build a configuration that holds lists of sections, which `resolve` does not know.

    Args:
        model: the configuration.
        loaded: the file, with its duplicate keys.

    Returns:
        The configuration.

    Raises:
        ConfigError: one line for every duplicate, unknown, missing or invalid key.
    """
    errors = list(loaded.duplicates)
    try:
        # By way of JSON, because strict JSON takes a list for a tuple and strict Python does not.
        config = model.model_validate_json(json.dumps(loaded.data), strict=True)
    except ValidationError as error:
        errors += [line for problem in error.errors() for line in _explained(model, loaded, problem)]
    if errors:
        raise ConfigError("\n".join(errors))
    return config


def check_settings(
    loaded: LoadedYaml, recipe: Path, shared: Sequence[str], variants: Sequence[tuple[str, Sequence[str]]]
) -> None:
    """Resolve the recipe of every variant, so that a wrong key is told before the first run.

    Args:
        loaded: the experiment's file, for lines.
        recipe: what the variants vary.
        shared: changes of all variants.
        variants: name and changes of each.

    Raises:
        ConfigError: one line for every wrong change, with the file, the line and the variant.
    """
    errors: dict[str, None] = {}
    common = {_key(text): _line(loaded, ("set", str(i))) for i, text in enumerate(shared)}
    for number, (name, changes) in enumerate(variants):
        own = {
            _key(text): f"{_line(loaded, ('variants', str(number), 'set', str(i)))}, variant {name!r}"
            for i, text in enumerate(changes)
        }
        try:
            resolve(BinaryAdapterConfig, [recipe], [*shared, *changes], {"seed": 0, "output": "runs"})
        except ConfigError as error:
            errors |= dict.fromkeys(_blamed(line, common | own) for line in str(error).splitlines())
    if errors:
        raise ConfigError("\n".join(errors))


def _explained(model: type[Config], loaded: LoadedYaml, problem: ErrorDetails) -> list[str]:
    path = problem["loc"]
    if problem["type"] == "extra_forbidden":
        return [_unknown(model, loaded, path)]
    if problem["type"] == "missing":
        where = _line(loaded, [str(part) for part in path])
        return [f"{messages.dotted(path)} is required and missing ({where}); add it"]
    if not path and problem["type"] == "value_error":
        # Checks across variants start each line with the key that they blame.
        lines = str(problem["ctx"]["error"]).splitlines()
        keys = [re.split(r"\]?[.\[]", line.partition(" ")[0].rstrip("]")) for line in lines]
        return [f"{line} ({_line(loaded, key)})" for line, key in zip(lines, keys, strict=True)]
    return [messages.invalid(problem, lambda key: _line(loaded, key), model)]


def _unknown(model: type[Config], loaded: LoadedYaml, path: Sequence[str | int]) -> str:
    around = messages.dotted(path[:-1])
    line = messages.unknown(
        _section(model, path[:-1]), (str(path[-1]),), _line(loaded, [str(part) for part in path])
    )
    if around:
        line = line.replace("unknown key ", f"unknown key {around}.", 1).replace("the top level", around)
    return line


def _section(model: type[Config], path: Sequence[str | int]) -> type[Config]:
    for name in path:
        if isinstance(name, str):
            field = model.model_fields[name]
            model = section_of(field) or get_args(field.annotation)[0]
    return model


def _line(loaded: LoadedYaml, key: KeyPath | Sequence[str]) -> str:
    """File and line of a key, or of the nearest section around it that is written down."""
    lengths = range(len(key), 0, -1)
    found = (loaded.lines[name] for length in lengths if (name := ".".join(key[:length])) in loaded.lines)
    return f"{loaded.path.name}:{next(found, 1)}"


def _key(change: str) -> str:
    return change.partition("=")[0].strip()


def _blamed(line: str, origins: Mapping[str, str]) -> str:
    """An error of `--set` with the place in the experiment of the first key that it names."""
    places = {key: re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", line) for key in origins}
    named = {key: match.start() for key, match in places.items() if match}
    if "--set" not in line or not named:
        return line
    origin = origins[min(named, key=lambda key: named[key])]
    if "(--set)" in line:
        return line.replace("(--set)", f"({origin})")
    return f"{line.removeprefix('--set ')} ({origin})"
