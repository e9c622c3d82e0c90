"""Whether a key has an effect, by the conditions that `applies_to` put on its field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from petkit.configuration.sections import Config, KeyPath, alternatives_of, is_allowed, leaves


def effective(config: Config) -> dict[str, Any]:
    """The nested values of a configuration without the keys that have no effect in it."""
    data = config.model_dump(mode="json")
    present = [leaf for leaf in leaves(type(config)) if isinstance(_at(data, leaf[0][:-1]), dict)]
    lookup = lookup_in(type(config), {path: _at(data, path) for path, _, _ in present})
    for path, field, section in present:
        if blockers_of(path, alternatives_of(field), section, lookup):
            _at(data, path[:-1]).pop(path[-1])
    return data


def lookup_in(model: type[Config], values: Mapping[KeyPath, Any]) -> Callable[[KeyPath], Any]:
    """Reads a leaf: as it was set, or else its default; KeyError when there is neither or no such key."""
    fields = {path: field for path, field, _ in leaves(model)}

    def lookup(path: KeyPath) -> Any:
        if path in values:
            return values[path]
        if fields[path].is_required():
            raise KeyError(path)
        return fields[path].get_default(call_default_factory=True)

    return lookup


def blockers_of(
    path: KeyPath,
    alternatives: Sequence[Mapping[str, list[Any]]],
    section: type[Config],
    lookup: Callable[[KeyPath], Any],
) -> dict[KeyPath, Any]:
    """The fields that switch a key off, with their values; empty when one alternative matches."""
    blockers: dict[KeyPath, Any] = {}
    for alternative in alternatives:
        failed = {}
        for name, allowed in alternative.items():
            sibling = name in section.model_fields
            other = (*path[:-1], name) if sibling else tuple(name.split("."))
            try:
                value = lookup(other)
            except KeyError:
                # A section that stands alone, without the root that the condition speaks of.
                continue
            if not is_allowed(value, allowed):
                failed[other] = value
        if not failed:
            return {}
        blockers |= failed
    return blockers


def _at(data: Any, path: KeyPath) -> Any:
    for name in path:
        # An optional section may be absent.
        data = None if data is None else data[name]
    return data
