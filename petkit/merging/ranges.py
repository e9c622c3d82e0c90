"""Ranges in a merge's YAML that a search fills in: `weight: {search: [0, 1]}`. Torch-free."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from petkit.configuration.messages import dotted, nearest
from petkit.errors import ConfigError
from petkit.merging.parameters import Parameter

SEARCH = "search"
KEYS = (SEARCH, "name", "start")
PARAMETERS = "parameters"
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Range:
    """A number that is searched.

    Args:
        name: of the number, in tables and files.
        low: smallest value.
        high: largest value.
        start: value in the first trial.
    """

    name: str
    low: float
    high: float
    start: float


@dataclass(frozen=True)
class Space:
    """A configuration with ranges, and what stands in them.

    Args:
        data: the configuration as it was read.
        ranges: one by name.
        slots: the name of the range at each place; ranges of one name share their value.
    """

    data: Mapping[str, Any]
    ranges: tuple[Range, ...]
    slots: Mapping[Place, str]

    @property
    def start(self) -> dict[str, float]:
        """The values of the first trial."""
        return {one.name: one.start for one in self.ranges}

    def filled(self, values: Mapping[str, float]) -> dict[str, Any]:
        """The configuration with numbers in the places of its ranges."""
        data = copy.deepcopy(dict(self.data))
        for place, name in self.slots.items():
            _put(data, place, float(values[name]))
        return data


def range_places(data: Any, place: Place = ()) -> Iterator[Place]:
    """Where a configuration holds ranges, among its parameters."""
    if isinstance(data, Mapping):
        if PARAMETERS in place[:-1] and SEARCH in data:
            yield place
            return
        for key, value in data.items():
            yield from range_places(value, (*place, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from range_places(value, (*place, index))


def read_space(data: Mapping[str, Any], parameters: Sequence[Parameter], where: str) -> Space:
    """Read the ranges of a configuration.

    Args:
        data: mergekit's keys; a number of a parameter may be {search: [low, high], name: ..., start: ...}.
        parameters: of the method, whose defaults are where a search starts.
        where: the file's name, for messages.

    Returns:
        The ranges and their places; nothing where there are none.

    Raises:
        ConfigError: a range of another form, or two of one name that differ; the place is named.
    """
    slots: dict[Place, str] = {}
    ranges: dict[str, Range] = {}
    named: set[str] = set()
    for place in range_places(data):
        label = f"{where}: {dotted(place)}"
        found = _at(data, place)
        _check_range(found, label)
        own = found.get("name")
        name = str(own) if own is not None else _label(data, place)
        # Names that stand there are shared on purpose, those that are made here must not meet.
        if name in ranges and not (own is not None and name in named):
            name = dotted(place)
        low, high = (float(one) for one in found[SEARCH])
        start = found.get("start")
        if start is None:
            start = _usual_start(data, place, parameters, low, high)
        one = Range(name, low, high, float(start))
        if ranges.setdefault(name, one) != one:
            raise ConfigError(f"{label}: ranges of the name {name} must be equal, one is {_shown(one)} and "
                              f"another {_shown(ranges[name])}")  # fmt: skip
        if own is not None:
            named.add(name)
        slots[place] = name
    return Space(data, tuple(ranges.values()), slots)


def with_usual_ranges(
    data: Mapping[str, Any], parameters: Sequence[Parameter], limits: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """Put a range in the place of every number of some parameters, to start from that number.

    Args:
        data: mergekit's keys, without a range.
        parameters: of the method.
        limits: lowest and highest value by the name of a parameter; wider where the file's own number is
            outside. Where the file sets nothing, each model gets a range.

    Returns:
        The configuration with ranges.
    """
    changed = copy.deepcopy(dict(data))
    for parameter in parameters:
        if parameter.name not in limits:
            continue
        low, high = limits[parameter.name]
        if parameter.per_model:
            _range_models(changed, parameter.name, low, high)
        else:
            _range_whole(changed, parameter.name, low, high)
    return changed


def numbers_in(setting: Any) -> list[float]:
    """Every number of a setting: itself, along the layers, or by filters."""
    if isinstance(setting, Mapping):
        return numbers_in(setting.get("value"))
    if isinstance(setting, list):
        return [number for one in setting for number in numbers_in(one)]
    return [float(setting)] if _is_number(setting) else []


def _range_models(data: dict[str, Any], name: str, low: float, high: float) -> None:
    whole = _mapping(data.get(PARAMETERS))
    for group in _groups(data):
        between = _mapping(group.get(PARAMETERS)) if group is not data else {}
        for source in _merged(data, group):
            own = _mapping(source.get(PARAMETERS))
            setting = next((one[name] for one in (own, between, whole) if one.get(name) is not None), None)
            source[PARAMETERS] = {**own, name: _ranged(setting, low, high)}


def _range_whole(data: dict[str, Any], name: str, low: float, high: float) -> None:
    levels = [data, *(group for group in _groups(data) if group is not data)]
    set_there = [one for one in levels if _mapping(one.get(PARAMETERS)).get(name) is not None]
    for level in set_there or [data]:
        own = _mapping(level.get(PARAMETERS))
        level[PARAMETERS] = {**own, name: _ranged(own.get(name), low, high)}


def _ranged(setting: Any, low: float, high: float) -> Any:
    """A setting with a range in the place of each of its numbers."""
    if setting is None:
        return {SEARCH: [low, high]}
    if isinstance(setting, Mapping) and "value" in setting:
        return {**setting, "value": _ranged(setting["value"], low, high)}
    if isinstance(setting, list):
        return [_ranged(one, low, high) for one in setting]
    if not _is_number(setting):
        return setting
    return {SEARCH: [min(low, setting), max(high, setting)], "start": setting}


def _check_range(found: Mapping[str, Any], label: str) -> None:
    for key in found:
        if key not in KEYS:
            near = nearest(str(key), KEYS)
            hint = f"; did you mean {near}?" if near else f"; a range has {', '.join(KEYS)}"
            raise ConfigError(f"{label}: unknown key {key}{hint}")
    ends = found[SEARCH]
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(_is_number, ends)):
        raise ConfigError(f"{label}: search must be two numbers, [low, high], got {ends!r}")
    if not ends[0] < ends[1]:
        raise ConfigError(f"{label}: search must be [low, high] with low below high, got {ends!r}")
    start = found.get("start")
    if start is not None and not (_is_number(start) and ends[0] <= start <= ends[1]):
        raise ConfigError(f"{label}: start must be a number from {ends[0]} to {ends[1]}, got {start!r}")


def _usual_start(
    data: Mapping[str, Any], place: Place, parameters: Sequence[Parameter], low: float, high: float
) -> float:
    """Equal weights, and otherwise what a file without the parameter means; both within the range."""
    name = place[place.index(PARAMETERS) + 1]
    default = next((one.default for one in parameters if one.name == name), None)
    if name == "weight":
        group = data["slices"][place[1]] if place[0] == "slices" else next(iter(_groups(data)), data)
        default = 1 / max(1, len(_merged(data, group)))
    if not _is_number(default):
        return (low + high) / 2
    return min(max(float(default), low), high)


def _label(data: Mapping[str, Any], place: Place) -> str:
    """`maths.weight`, `maths.weight[1]`, `maths.weight.mlp`, `lambda`, `slices[0].t`."""
    middle = place.index(PARAMETERS)
    parts = [_owner(data, place[:end]) for end in range(2, middle + 1, 2)]
    text = ".".join(part for part in (*parts, str(place[middle + 1])) if part)
    for end in range(middle + 3, len(place) + 1):
        part = place[end - 1]
        if not isinstance(part, int):
            continue
        entry = _at(data, place[:end])
        by_filter = isinstance(entry, Mapping) and "value" in entry
        text += f".{entry.get('filter') or 'rest'}" if by_filter else f"[{part}]"
    return text


def _owner(data: Mapping[str, Any], place: Place) -> str:
    """How a label speaks of an entry of a list: a model by its folder's name, unless another has that too."""
    entry = _at(data, place)
    names = [_short(one) for one in _at(data, place[:-1])]
    name = _short(entry)
    return name if name and Counter(names)[name] == 1 else dotted(place[-2:])


def _short(entry: Any) -> str:
    model = entry.get("model") if isinstance(entry, Mapping) else None
    return Path(model).name if isinstance(model, str) else ""


def _groups(data: Mapping[str, Any]) -> list[Any]:
    """What models are listed in: the file itself, or each of its slices."""
    return [data] if "models" in data else [one for one in _list(data.get("slices")) if _is_dict(one)]


def _merged(data: Mapping[str, Any], group: Mapping[str, Any]) -> list[Any]:
    """The models of a list that are merged: a base that is listed without parameters is not."""
    listed = [one for one in _list(group.get("models") or group.get("sources")) if _is_dict(one)]
    base = data.get("base_model")
    if base is None or "models" not in group:
        return listed
    return [one for one in listed if one.get("model") != base or one.get(PARAMETERS)]


def _at(data: Any, place: Place) -> Any:
    for part in place:
        data = data[part]
    return data


def _put(data: Any, place: Place, value: float) -> None:
    _at(data, place[:-1])[place[-1]] = value


def _mapping(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}


def _list(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def _is_dict(data: Any) -> bool:
    return isinstance(data, dict)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(one: Range) -> str:
    return f"[{one.low:g}, {one.high:g}] from {one.start:g}"
