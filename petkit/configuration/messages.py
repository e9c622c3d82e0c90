"""Wording of configuration errors: what was expected, what came, which key and line, what to do."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from petkit.configuration.sections import Config, KeyPath, leaves, section_of

_EXPECTED: dict[str, str] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (put it in quotes)",
    "list_type": "a list, such as [a, b]",
    "tuple_type": "a list, such as [a, b]",
    "dict_type": "a mapping of keys to values",
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
}
_ABBREVIATIONS = {"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size"}
_EPOCHS = ("training", "epochs")
# Of the letters of two names; the best match counts, and `epox` for `epochs` has 0.6.
_CLOSE = 0.6
_CLOSE_ELSEWHERE = 0.75
# Of a value in an error; and of what two values share, before the place where they part.
_LONGEST = 60
_CONTEXT = 20
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def dotted(path: Sequence[str | int]) -> str:
    """A key as people write it: `adapter.targets[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shown(value: Any) -> str:
    """A value in an error, cut to a length that fits on a line."""
    return _cut(_written(value))


def shown_apart(one: Any, other: Any) -> tuple[str, str]:
    """Two different values in an error; long ones from a little before the place where they part."""
    first, second = _written(one), _written(other)
    # Behind the first sign, since the quotes of a text depend on what is between them.
    pairs = enumerate(zip(first, second, strict=False))
    parted = next((place for place, (a, b) in pairs if place and a != b), min(len(first), len(second)))
    start = parted - _CONTEXT
    if start > 0 and max(len(first), len(second)) > _LONGEST:
        first, second = f"...{first[start:]}", f"...{second[start:]}"
    return _cut(first), _cut(second)


def _written(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def nearest(name: str, known: Iterable[str], likeness: float = _CLOSE) -> str | None:
    """The known name that a wrong one is most like, or None when none is as like it as that, of 0 to 1."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)), None)


def one_of(values: Sequence[Any]) -> str:
    """`1, 2 or 4`."""
    words = [shown_word(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def invalid(error: ErrorDetails, where: Callable[[KeyPath], str | None], model: type[Config]) -> str:
    """One pydantic error as one line; `where` gives the origin of a key or of the section around it."""
    path = error["loc"]
    key = tuple(str(part) for part in path)
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "value_error":
        return _own_error(path, str(context["error"]), where, model)
    if kind in ("too_short", "string_too_short"):
        return f"{dotted(path)} must not be empty, got {shown(error['input'])}{place(where(key))}"
    if kind == "too_long":
        most, count = context["max_length"], context["actual_length"]
        return f"{dotted(path)} must hold at most {most} entries, got {count}{place(where(key))}"
    if kind == "literal_error":
        expected = str(context["expected"]).replace("'", "")
    elif kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        expected = f"{words} {context[name]:g}"
    else:
        expected = _EXPECTED.get(kind, f"valid ({error['msg'][:1].lower()}{error['msg'][1:]})")
    return f"{dotted(path)} must be {expected}, got {shown(error['input'])}{place(where(key))}"


def not_a_choice(path: KeyPath, value: Any, choices: Sequence[Any], origin: str) -> str:
    """A value that is none of those a key may hold."""
    return f"{dotted(path)} must be {one_of(choices)}, got {shown(value)}{place(origin)}"


def not_a_setting(model: type[Config], text: str) -> str:
    """A `--set` without a key, with an example that the configuration knows."""
    return f"--set must be KEY=VALUE{_example(model)}, got {text!r}"


def _example(model: type[Config]) -> str:
    """The epochs of a training, or else a number, one in a section first; nothing without numbers."""
    numbers = {path: field.default for path, field, _ in leaves(model) if type(field.default) in (int, float)}
    if _EPOCHS in numbers:
        return f", such as {dotted(_EPOCHS)}=3"
    path = next((path for path in numbers if len(path) > 1), next(iter(numbers), None))
    return "" if path is None else f", such as {dotted(path)}={numbers[path]:g}"


def missing(path: KeyPath) -> str:
    """A required key that nothing sets."""
    key = dotted(path)
    return f"{key} is required and nothing sets it; add it to the recipe or pass --set {key}=VALUE"


def not_a_section(path: KeyPath, value: Any, origin: str) -> str:
    """A section written as a plain value."""
    return f"{dotted(path)} must be {_EXPECTED['model_type']}, got {shown(value)}{place(origin)}"


def unknown(model: type[Config], path: KeyPath, origin: str) -> str:
    """A key that does not exist, with the nearest one that does."""
    return f"unknown key {dotted(path)}{place(origin)}{_suggestion(model, path)}"


def no_effect(
    path: KeyPath,
    blockers: Mapping[KeyPath, Any],
    alternatives: Sequence[Mapping[str, list[Any]]],
    origin: str,
) -> str:
    """A key that was set although another key switches it off."""
    now = " and ".join(f"{dotted(other)} {shown_word(value)}" for other, value in blockers.items())
    needed = ", or ".join(
        " and ".join(f"{name} {one_of(values)}" for name, values in one.items()) for one in alternatives
    )
    return f"{dotted(path)} has no effect with {now}; it needs {needed}{place(origin)}"


def unused(path: KeyPath, why: str, origin: str) -> str:
    """A key that the command does not read, or that something else decides."""
    return f"{dotted(path)} has no effect: {why}{place(origin)}; remove it"


def shown_word(value: Any) -> str:
    """A value inside a sentence, text without quotes; or a condition of `applies_to`."""
    if isinstance(value, Mapping):
        ((name, bound),) = value.items()
        return f"{name} {' and '.join(bound) if isinstance(bound, list) else shown(bound)}"
    return value if isinstance(value, str) else shown(value)


def place(origin: str | None) -> str:
    """` (recipe.yaml:7)`, or nothing for a default."""
    return f" ({origin})" if origin else ""


def _own_error(
    path: Sequence[str | int], message: str, where: Callable[[KeyPath], str | None], model: type[Config]
) -> str:
    section = tuple(str(part) for part in path)
    # A validator of a whole section starts its message with the key that it blames, relative to its section.
    blamed = (*section, *message.partition(" ")[0].split("."))
    if any(leaf == blamed for leaf, _, _ in leaves(model)):
        return f"{dotted((*path, message))}{place(where(blamed))}"
    return f"{dotted(path)} {message}{place(where(section))}".strip()


def _suggestion(model: type[Config], path: KeyPath) -> str:
    name = _ABBREVIATIONS.get(path[-1], path[-1])
    siblings = _section_at(model, path[:-1])
    if siblings is None:
        return f"; {dotted(path[:-1])} is a value, not a section"
    near = nearest(name, siblings.model_fields)
    if near:
        return f"; did you mean {dotted((*path[:-1], near))}?"
    every = [leaf for leaf, _, _ in leaves(model)]
    for cutoff in (1.0, _CLOSE_ELSEWHERE):
        for leaf in every:
            if difflib.SequenceMatcher(None, leaf[-1], name).ratio() >= cutoff:
                return f"; did you mean {dotted(leaf)}?"
    return f"; {dotted(path[:-1]) or 'the top level'} has {', '.join(siblings.model_fields)}"


def _section_at(model: type[Config], path: KeyPath) -> type[Config] | None:
    for name in path:
        field = model.model_fields.get(name)
        section = section_of(field) if field else None
        if section is None:
            return None
        model = section
    return model
