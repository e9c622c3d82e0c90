"""mergekit's YAML, read as it is: models or slices, parameters by layer and by name. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petkit.configuration.messages import dotted
from petkit.configuration.reader import load_with_duplicates
from petkit.errors import ConfigError
from petkit.merging.ranges import range_places

KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "chat_template",
)  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")
# What mergekit knows too, and petkit does not do.
NOT_DONE = {
    "tokenizer": "set tokenizer_source to base or to a folder",
    "modules": "merge one module at a time",
    "name": "leave it out",
    "metadata": "leave it out",
}


@dataclass(frozen=True)
class SourceConfig:
    """A model, or some of its layers, with its own parameters."""

    model: str
    layers: tuple[int, int] | None = None
    """First layer and the one behind the last; None for the whole model."""

    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SliceConfig:
    """Models that are merged with each other, over as many layers each."""

    sources: tuple[SourceConfig, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base_layers: tuple[int, int] | None = None
    """Of the base, where the slice says which; else those of the first source."""


@dataclass(frozen=True)
class MergeConfig:
    """What a file asks for."""

    method: str
    slices: tuple[SliceConfig, ...]
    """One of whole models where the file lists models."""

    is_sliced: bool
    base: str | None
    parameters: Mapping[str, Any]
    dtype: str | None
    """Of the result; None is each tensor's own."""

    tokenizer_source: str | None
    chat_template: str | None

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is read, the base first where there is one."""
        named = [self.base] if self.base else []
        named += [source.model for one in self.slices for source in one.sources]
        return tuple(dict.fromkeys(named))


def read_merge_config(path: Path) -> MergeConfig:
    """Read a file of mergekit's format.

    Args:
        path: the YAML.

    Returns:
        What it asks for; parameters are read as they are, and checked by the method.

    Raises:
        ConfigError: a key that is not known or not supported, or a value of another form; each is named.
        InputError: the file cannot be read.
    """
    loaded = load_with_duplicates(path)
    if loaded.duplicates:
        raise ConfigError("\n".join(loaded.duplicates))
    return merge_config(loaded.data, path.name)


def merge_config(data: Mapping[str, Any], name: str) -> MergeConfig:
    """Like `read_merge_config`, from what a file called `name` held."""
    _check_keys(data, KEYS, name, NOT_DONE)
    if "merge_method" not in data:
        raise ConfigError(f"{name}: merge_method is required, such as linear or ties")
    if ("models" in data) == ("slices" in data):
        raise ConfigError(f"{name}: either models or slices must be there")
    for place in range_places(data):
        raise ConfigError(
            f"{name}: {dotted(place)} is a range, which `petkit merge tune` searches: give a number"
        )
    slices = _slices(data["slices"], name) if "slices" in data else _models(data["models"], name)
    base = None if data.get("base_model") is None else _model(data["base_model"], f"{name}: base_model")
    # mergekit's files often list the base among the models, with no parameters of its own.
    if base is not None:
        slices = tuple(_without_base(one, base) for one in slices)
    return MergeConfig(
        method=str(data["merge_method"]),
        slices=slices,
        is_sliced="slices" in data,
        base=base,
        parameters=_mapping(data.get("parameters"), f"{name}: parameters"),
        dtype=_dtype(data.get("out_dtype") or data.get("dtype"), name),
        tokenizer_source=_text(data.get("tokenizer_source"), f"{name}: tokenizer_source"),
        chat_template=_text(data.get("chat_template"), f"{name}: chat_template"),
    )


def setting_at(setting: Any, tensor: str, depth: float) -> Any:
    """The value of a parameter for one tensor.

    Args:
        setting: a value; a list of numbers, interpolated over the layers; or a list of mappings of `value`
            and perhaps `filter`, of which the first that is part of the tensor's name counts.
        tensor: its name.
        depth: of its layer, 0 for the first and 1 for the last.

    Returns:
        The value; None where no filter matches.

    Raises:
        ConfigError: the list is of another form.
    """
    if not isinstance(setting, list):
        return setting
    if setting and all(isinstance(one, int | float) and not isinstance(one, bool) for one in setting):
        return _interpolated(setting, depth)
    for one in setting:
        if not isinstance(one, Mapping) or "value" not in one or one.keys() - {"filter", "value"}:
            raise ConfigError(f"a list of parameters must hold numbers, or filter and value, got {one!r}")
        wanted = one.get("filter")
        if wanted is None or wanted == "*" or str(wanted) in tensor:
            return setting_at(one["value"], tensor, depth)
    return None


def _interpolated(points: Sequence[float], depth: float) -> float:
    place = depth * (len(points) - 1)
    left = min(int(place), len(points) - 1)
    right = min(left + 1, len(points) - 1)
    share = place - left
    return (1 - share) * points[left] + share * points[right]


def _check_keys(data: Any, known: Sequence[str], where: str, not_done: Mapping[str, str] = {}) -> None:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping, got {data!r:.80}")
    faults = []
    for key in data:
        if key in known:
            continue
        if key in not_done:
            faults.append(f"{where}: {key} is not supported: {not_done[key]}")
            continue
        near = difflib.get_close_matches(str(key), known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        faults.append(f"{where}: unknown key {key}{hint}")
    if faults:
        raise ConfigError("\n".join(faults))


def _models(data: Any, where: str) -> tuple[SliceConfig, ...]:
    sources = []
    for place, one in enumerate(_list(data, f"{where}: models")):
        label = f"{where}: models[{place}]"
        _check_keys(one, ("model", "parameters"), label)
        if "model" not in one:
            raise ConfigError(f"{label}: model is required")
        sources.append(
            SourceConfig(
                _model(one["model"], label), None, _mapping(one.get("parameters"), f"{label}.parameters")
            )
        )
    return (SliceConfig(tuple(sources)),)


def _without_base(one: SliceConfig, base: str) -> SliceConfig:
    bases = [source for source in one.sources if source.model == base and not source.parameters]
    kept = tuple(source for source in one.sources if source not in bases)
    # One that is all there is, is what the layers are taken from.
    if not bases or (not kept and one.sources[0].layers is not None):
        return one
    return SliceConfig(kept, one.parameters, bases[0].layers)


def _slices(data: Any, where: str) -> tuple[SliceConfig, ...]:
    found = []
    for place, one in enumerate(_list(data, f"{where}: slices")):
        label = f"{where}: slices[{place}]"
        _check_keys(one, ("sources", "parameters"), label)
        sources = tuple(
            _layered(source, f"{label}.sources[{i}]")
            for i, source in enumerate(_list(one.get("sources"), f"{label}.sources"))
        )
        lengths = {source.layers[1] - source.layers[0] for source in sources if source.layers}
        if len(lengths) != 1:
            raise ConfigError(f"{label}: all sources must have as many layers, got {sorted(lengths)}")
        found.append(SliceConfig(sources, _mapping(one.get("parameters"), f"{label}.parameters")))
    return tuple(found)


def _layered(data: Any, where: str) -> SourceConfig:
    _check_keys(data, ("model", "layer_range", "parameters"), where)
    layers = data.get("layer_range")
    fits = isinstance(layers, list) and len(layers) == 2 and all(type(one) is int for one in layers)
    if not fits or not 0 <= layers[0] < layers[1]:
        raise ConfigError(f"{where}: layer_range must be [first, behind the last], got {layers!r}")
    if "model" not in data:
        raise ConfigError(f"{where}: model is required")
    parameters = _mapping(data.get("parameters"), f"{where}.parameters")
    return SourceConfig(_model(data["model"], where), (layers[0], layers[1]), parameters)


def _model(data: Any, where: str) -> str:
    """The folder of a model, perhaps with `+` and an adapter's; mergekit's longer forms are read too."""
    if isinstance(data, Mapping):
        _check_keys(data, ("model", "path", "lora"), where, {"revision": "use a folder"})
        model = _model(data.get("path") or data.get("model"), where)
        adapter = data.get("lora")
        return model if adapter is None else f"{model}+{_model(adapter, f'{where}.lora')}"
    if not isinstance(data, str) or not data:
        raise ConfigError(f"{where} must be a model folder, got {data!r}")
    split_adapter(data, where)
    return data


def split_adapter(name: str, where: str = "models") -> tuple[str, str | None]:
    """Take `base+adapter` apart.

    Args:
        name: a folder, or two with a plus between; a folder that is there may have one in its name.
        where: for the message.

    Returns:
        The model's folder and the adapter's, or None.

    Raises:
        ConfigError: there is no one place to take it apart.
    """
    if "+" not in name or Path(name).exists():
        return name, None
    pairs = [(name[:place], name[place + 1 :]) for place, letter in enumerate(name) if letter == "+"]
    there = [pair for pair in pairs if all(part and Path(part).exists() for part in pair)]
    found = there if len(there) == 1 else pairs
    if len(found) != 1 or not all(found[0]):
        raise ConfigError(f"{where}: {name} must be a model folder, or base+adapter, with one plus")
    return found[0]


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{where} must be a list of at least one, got {data!r:.80}")
    return data


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping of names to values, got {data!r:.80}")
    return data


def _dtype(data: Any, where: str) -> str | None:
    if data is not None and data not in DTYPES:
        raise ConfigError(f"{where}: dtype must be one of {', '.join(DTYPES)}, got {data!r}")
    return None if data is None else str(data)


def _text(data: Any, where: str) -> str | None:
    if data is not None and not isinstance(data, str):
        raise ConfigError(f"{where} must be a text, got {data!r:.80}")
    return data
