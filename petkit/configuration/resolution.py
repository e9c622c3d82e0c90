"""Precedence: defaults < recipe < files in order < environment < --set < named flags; all errors at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from petkit.configuration import messages
from petkit.configuration.effects import blockers_of, lookup_in
from petkit.configuration.reader import LoadedYaml, load_with_duplicates, parse_value
from petkit.configuration.sections import (
    Config,
    KeyPath,
    alternatives_of,
    choices_of,
    holds_text,
    leaves,
    section_of,
)
from petkit.errors import ConfigError

ENVIRONMENT_PREFIX = "PETKIT_SET__"
DEFAULT = "default"
OVERRIDE = "--set"

AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class Resolved(Generic[AnyConfig]):
    """A validated configuration and who set each of its keys."""

    config: AnyConfig
    origins: dict[str, str]
    """Dotted key to `default`, `recipe.yaml:7`, `PETKIT_SET__SEED`, `--set` or `--seed`."""
    dropped: tuple[str, ...] = ()
    """One line per key that a higher layer's choice switched off, and that is back at its default."""


@dataclass(frozen=True)
class _Setting:
    """One key as one layer sets it; a higher layer wins over a lower one."""

    value: Any
    origin: str
    layer: int


_Settings = dict[KeyPath, _Setting]


def resolve(
    model: type[AnyConfig],
    files: Sequence[Path | str],
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    ignored: Mapping[str, str] | None = None,
) -> Resolved[AnyConfig]:
    """Merge every source of settings and validate the result.

    Args:
        model: the configuration to build.
        files: YAML files; a later one wins. None are needed when flags and overrides set every required key.
        overrides: `a.b=VALUE` texts of `--set`, VALUE being YAML; a later one wins.
        flags: dotted key to value of a named flag; None means that the flag was not given.
        environment: variables such as `PETKIT_SET__TRAINING__EPOCHS=3`; default: the process's own. Other
            PETKIT_ variables (PETKIT_CPU_KERNELS, PETKIT_CACHE) are not settings and are left alone.
        ignored: keys and sections that the command does not use, each with the reason; the configuration
            need not have them. A file that serves other commands too may set them; an override may not.

    Returns:
        The configuration, the origin of every key, and notes on keys that a higher layer switched off.

    Raises:
        ConfigError: one line for every duplicate, unknown, invalid, missing or ineffective key.
        InputError: a file that does not exist or cannot be read.
    """
    variables = os.environ if environment is None else environment
    merged: _Settings = {}
    errors: list[str] = []
    unused: list[str] = []
    loaded = [load_with_duplicates(file) for file in files]
    for data, origin, layer, given in _layers(model, loaded, overrides, flags or {}, variables, errors):
        found = dict(_flatten(model, data, origin, layer))
        unused += _unused(model, found, ignored or {})
        merged.update({path: _joined(merged.get(path), path, new, given) for path, new in found.items()})
    settings, unknown = _known(model, merged, ignored or {})
    errors += [*(line for file in loaded for line in file.duplicates), *unknown, *unused]
    config, invalid = _validate(model, settings)
    errors += invalid.values()
    dropped = []
    for path, idle in _idle(model, settings, set(invalid)).items():
        if idle.is_error and _why_ignored(path, ignored or {}) is None:
            errors.append(f"{idle.message}; remove it")
        else:
            dropped.append(idle.message)
            del settings[path]
    if dropped and not errors:
        config, _ = _validate(model, settings)
    if errors or config is None:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    origins = {
        messages.dotted(p): settings[p].origin if p in settings else DEFAULT for p, _, _ in leaves(model)
    }
    return Resolved(config, origins, tuple(dropped))


def parse_override(text: str, model: type[Config]) -> tuple[KeyPath, str]:
    """Split the `a.b=VALUE` of `--set` into its path and the text of its value.

    Args:
        text: what was given.
        model: the configuration that it changes; an error names a key of it.

    Returns:
        The path, which need not exist, and the text.

    Raises:
        ConfigError: there is no `=`, or the key is not dotted names.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(part.isidentifier() for part in path):
        raise ConfigError(messages.not_a_setting(model, text))
    return path, value


def _layers(
    model: type[Config],
    files: Sequence[LoadedYaml],
    overrides: Sequence[str],
    flags: Mapping[str, Any],
    variables: Mapping[str, str],
    errors: list[str],
) -> Iterator[tuple[dict[str, Any], Callable[[KeyPath], str], int, KeyPath]]:
    """Every source, lowest precedence first: nested data, the origin of a path in it, its layer, its key.

    What cannot be read of a variable or an override is added to the errors.
    """
    layer = 0
    for layer, loaded in enumerate(files, start=1):
        yield loaded.data, partial(_file_origin, loaded), layer, ()
    for name in sorted(variables):
        if name.startswith(ENVIRONMENT_PREFIX):
            path = tuple(name[len(ENVIRONMENT_PREFIX) :].lower().split("__"))
            with _collected(errors):
                value = _value(model, path, variables[name], name)
                yield _nested(path, value), partial(_fixed, name), layer + 1, path
    for text in overrides:
        with _collected(errors):
            path, words = parse_override(text, model)
            value = _value(model, path, words, f"--set {text}")
            yield _nested(path, value), partial(_fixed, OVERRIDE), layer + 2, path
    for key, value in flags.items():
        path = tuple(key.split("."))
        if value is not None:
            yield _nested(path, value), partial(_fixed, f"--{path[-1].replace('_', '-')}"), layer + 3, path


def _joined(before: _Setting | None, path: KeyPath, new: _Setting, given: KeyPath) -> _Setting:
    """A setting on top of another; one entry of a mapping, given as such, leaves the mapping's others."""
    is_entry = len(given) > len(path)
    if not is_entry or before is None or not all(isinstance(one.value, Mapping) for one in (before, new)):
        return new
    return replace(new, value={**before.value, **new.value})


@contextmanager
def _collected(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        errors.append(str(error))


def _unused(model: type[Config], found: _Settings, ignored: Mapping[str, str]) -> Iterator[str]:
    """One error for each override of a key that the command ignores."""
    for path, _, _ in leaves(model):
        why = _why_ignored(path, ignored)
        if path in found and found[path].origin == OVERRIDE and why is not None:
            yield messages.unused(path, why, OVERRIDE)


def _why_ignored(path: KeyPath, ignored: Mapping[str, str]) -> str | None:
    parents = (messages.dotted(path[:length]) for length in range(1, len(path) + 1))
    return next((ignored[parent] for parent in parents if parent in ignored), None)


def _file_origin(loaded: LoadedYaml, path: KeyPath) -> str:
    return f"{loaded.path.name}:{loaded.lines.get('.'.join(path), 1)}"


def _fixed(origin: str, path: KeyPath) -> str:
    return origin


def _value(model: type[Config], path: KeyPath, text: str, where: str) -> Any:
    """The value of an override; text where the key holds text, so that a revision 1e5 is no number."""
    field = next((field for leaf, field, _ in leaves(model) if leaf == path), None)
    if field is not None and holds_text(field) and text not in ("null", "~", ""):
        return text
    return parse_value(text, where)


def _nested(path: KeyPath, value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def _flatten(
    model: type[Config],
    data: Mapping[str, Any],
    origin: Callable[[KeyPath], str],
    layer: int,
    prefix: KeyPath = (),
) -> Iterator[tuple[KeyPath, _Setting]]:
    """One setting per leaf; an unknown key, or a section that is not a mapping, is one setting as a whole."""
    for name, value in data.items():
        path = (*prefix, name)
        field = model.model_fields.get(name)
        section = section_of(field) if field else None
        if section is not None and (value is None or isinstance(value, Mapping)):
            yield from _flatten(section, value or {}, origin, layer, path)
        else:
            yield path, _Setting(value, origin(path), layer)


def _known(model: type[Config], merged: _Settings, ignored: Mapping[str, str]) -> tuple[_Settings, list[str]]:
    """The settings of existing keys, and one error for each of the others."""
    existing = {path for path, _, _ in leaves(model)}
    sections = {path[:length] for path in existing for length in range(1, len(path))}
    errors = []
    for path, setting in merged.items():
        if path in sections:
            errors.append(messages.not_a_section(path, setting.value, setting.origin))
        elif path not in existing and (
            setting.origin == OVERRIDE or path[0] in model.model_fields or _why_ignored(path, ignored) is None
        ):
            errors.append(messages.unknown(model, path, setting.origin))
    return {path: setting for path, setting in merged.items() if path in existing}, errors


def _validate(model: type[AnyConfig], settings: _Settings) -> tuple[AnyConfig | None, dict[KeyPath, str]]:
    """Validate strictly, so that `epochs: true` is no 1 and `"3"` is no 3; one error line per path."""
    data: dict[str, Any] = {}
    for path, setting in settings.items():
        section = data
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = setting.value
    # For pydantic the literal 1 equals true, so that `bits: true` would pass as one bit.
    confused = {
        path: messages.not_a_choice(path, settings[path].value, choices_of(field), settings[path].origin)
        for path, field, _ in leaves(model)
        if path in settings and _is_truth_for_number(settings[path].value, choices_of(field))
    }
    try:
        # By way of JSON, because strict JSON takes a list for a tuple and strict Python does not.
        return model.model_validate_json(json.dumps(data), strict=True), confused
    except ValidationError as error:
        return None, confused | _explained(model, settings, error)


def _is_truth_for_number(value: Any, choices: Sequence[Any]) -> bool:
    return isinstance(value, bool) and bool(choices) and not any(value is choice for choice in choices)


def _explained(model: type[Config], settings: _Settings, error: ValidationError) -> dict[KeyPath, str]:
    def origin(path: KeyPath) -> str | None:
        found = (settings[path[:length]] for length in range(len(path), 0, -1) if path[:length] in settings)
        return next((setting.origin for setting in found), None)

    lines: dict[KeyPath, str] = {}
    for one in error.errors():
        path = tuple(str(part) for part in one["loc"])
        if one["type"] == "missing":
            required = [
                leaf for leaf, field, _ in leaves(model) if leaf[: len(path)] == path and field.is_required()
            ]
            lines.update((leaf, messages.missing(leaf)) for leaf in required)
        else:
            lines[path] = messages.invalid(one, origin, model)
    return lines


@dataclass(frozen=True)
class _Idle:
    """A key that was set and has no effect."""

    message: str
    is_error: bool


def _idle(model: type[Config], settings: _Settings, broken: set[KeyPath]) -> dict[KeyPath, _Idle]:
    """The set keys without an effect.

    A key is only dropped, with a note, when a higher layer's choice switches it off: it is no mistake to say
    `--set adapter.method=linear_probe` on top of a recipe that sets a bottleneck.
    """
    found = {}
    lookup = lookup_in(model, {path: setting.value for path, setting in settings.items()})
    for path, field, section in leaves(model):
        blockers = blockers_of(path, alternatives_of(field), section, lookup)
        if path not in settings or not blockers or broken.intersection(blockers):
            continue
        layer = max(settings[blocker].layer if blocker in settings else 0 for blocker in blockers)
        message = messages.no_effect(path, blockers, alternatives_of(field), settings[path].origin)
        found[path] = _Idle(message, is_error=layer <= settings[path].layer)
    return found
