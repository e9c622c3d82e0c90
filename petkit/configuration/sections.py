"""The base of every configuration section, and what its fields say about when they have an effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

KeyPath: TypeAlias = tuple[str, ...]
"""A dotted key, split: ("adapter", "bits")."""

Alternative: TypeAlias = Mapping[str, tuple[Any, ...]]
"""Field names and the values they may hold, or `above` and `outside`; all of them must match."""


class Config(BaseModel):
    """Base of every configuration section: frozen, closed to unknown keys, documented field by field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def applies_to(*alternatives: Alternative, **conditions: tuple[Any, ...]) -> dict[str, Any]:
    """Field metadata: the key has an effect only while other fields hold one of the given values.

    Args:
        alternatives: mappings of names to allowed values; the key has an effect when any of them matches.
        conditions: one more alternative, as keywords. A name is a field of the same section, or else a dotted
            path from the root of the recipe (`task`, `data.format`).

    Returns:
        A value for pydantic's `json_schema_extra`, so that the JSON schema shows the conditions too.
    """
    every = [*alternatives, conditions] if conditions else list(alternatives)
    return {"applies_to": [{name: list(values) for name, values in one.items()} for one in every]}


def above(bound: float) -> dict[str, float]:
    """In the place of a value in `applies_to`: any number greater than this one."""
    return {"above": bound}


def outside(*prefixes: str) -> dict[str, list[str]]:
    """In the place of a value in `applies_to`: any text that starts with none of these."""
    return {"outside": list(prefixes)}


def is_allowed(value: Any, allowed: Sequence[Any]) -> bool:
    """Whether a value is one of those that `applies_to` gives, or meets one of its conditions."""
    return any(_meets(value, one) if isinstance(one, Mapping) else value == one for one in allowed)


def _meets(value: Any, condition: Mapping[str, Any]) -> bool:
    if "above" in condition:
        return isinstance(value, int | float) and value > condition["above"]
    return isinstance(value, str) and not value.startswith(tuple(condition["outside"]))


def section_of(field: FieldInfo) -> type[Config] | None:
    """The section that a field holds (`X` or `X | None`), or None when the field is a plain value."""
    annotation = _without_none(field.annotation)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def holds_text(field: FieldInfo) -> bool:
    """Whether a field is a `str` or `str | None`, so that `--set key=1e5` means the text 1e5."""
    return _without_none(field.annotation) is str


def choices_of(field: FieldInfo) -> tuple[Any, ...]:
    """The values that a `Literal` field may hold; empty for any other field."""
    annotation = _without_none(field.annotation)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def leaves(model: type[Config], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, FieldInfo, type[Config]]]:
    """Every plain field of a configuration: its path, the field, and the section that declares it.

    What `applies_to` says of a section, by dotted paths from the root, is said of each of its fields.
    """
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            yield (*prefix, name), field, model
        else:
            whole = alternatives_of(field)
            for path, leaf, owner in leaves(section, (*prefix, name)):
                yield path, _within(leaf, whole) if whole else leaf, owner


def alternatives_of(field: FieldInfo) -> list[dict[str, list[Any]]]:
    """The conditions that `applies_to` put on a field; empty when it always has an effect."""
    extra = field.json_schema_extra
    found = extra.get("applies_to", []) if isinstance(extra, dict) else []
    return list(found)  # type: ignore[arg-type]


def _within(field: FieldInfo, conditions: Sequence[Mapping[str, list[Any]]]) -> FieldInfo:
    """The field with the conditions of its section besides its own."""
    own = alternatives_of(field) or [{}]
    found = copy(field)
    found.json_schema_extra = {"applies_to": [{**outer, **inner} for outer in conditions for inner in own]}
    return found


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    others = [one for one in get_args(annotation) if one is not NoneType]
    return others[0] if len(others) == 1 else annotation
