"""Options that several commands share, as a dataclass that a command takes for one parameter."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show typer the fields of every parameter that is a dataclass, and call the command with the dataclass.

    Args:
        command: its dataclasses have fields annotated as typer's parameters, with defaults where an option
            need not be given; no name may come twice.

    Returns:
        A command with the fields in the dataclass's place.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        own = _fields(groups[name]) if name in groups else [parameter.replace(annotation=hints[name])]
        parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]

    @functools.wraps(command)
    def flat(**values: Any) -> Any:
        made = {name: group(**_taken(values, group)) for name, group in groups.items()}
        return command(**values, **made)

    # typer reads both; the annotations have been resolved, since they are of several modules.
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {one.name: one.annotation for one in parameters}
    return flat


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


def _taken(values: dict[str, Any], group: Any) -> dict[str, Any]:
    return {field.name: values.pop(field.name) for field in dataclasses.fields(group)}
