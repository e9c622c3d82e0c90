"""From a configuration and open models to a list of tensors to merge."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from petkit.errors import ConfigError, InputError
from petkit.merging.combining import Method
from petkit.merging.config import MergeConfig, SliceConfig, setting_at
from petkit.merging.parameters import Values
from petkit.merging.registry import method_named
from petkit.merging.slices import Buffers, Reading, Slices, check_shapes
from petkit.merging.sources import Source
from petkit.merging.state_dicts import FLOATS, check_count, common_dtype

log = logging.getLogger(__name__)

# The number of a layer: the first number in a tensor's name.
LAYER = re.compile(r"^(.*?)\.(\d+)\.(.*)$")
EARLY = ("embed", "wte", "wpe", "cls_token", "pos_", "patch")


@dataclass(frozen=True)
class Planned:
    """A tensor of the result.

    Args:
        slices: where it comes from.
        values: parameters for it.
        dtype: of the result.
        is_merged: False for tensors of other dtypes, which are copied from the first reading.
        before: what the result is compared with: the base's tensor, or else the first model's.
    """

    slices: Slices
    values: Values
    dtype: torch.dtype
    is_merged: bool
    before: Reading

    @property
    def name(self) -> str:
        """Of the tensor."""
        return self.slices.name

    @property
    def nbytes(self) -> int:
        """Of the tensor in the result."""
        return self.slices.count * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """Every tensor of the result, in the order in which they are merged."""

    method: Method
    tensors: tuple[Planned, ...]
    layers: int | None
    """Of the result, where layers are stacked anew."""

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(one.nbytes for one in self.tensors)

    @property
    def read_nbytes(self) -> int:
        """That are read once through."""
        readings = [
            reading
            for one in self.tensors
            for reading in (*one.slices.models, *([one.slices.base] if one.slices.base else []))
        ]
        return sum(reading.source.entries[reading.tensor].nbytes for reading in readings)


def plan_merge(config: MergeConfig, models: Mapping[str, Source], seed: int, buffers: Buffers) -> Plan:
    """Say where every tensor of the result comes from, and by which parameters.

    Args:
        config: what is asked for.
        models: the open models by the names that the configuration gives them.
        seed: of methods that draw.
        buffers: that pieces are read into.

    Returns:
        The plan.

    Raises:
        ConfigError: the method does not take as many models, or parameters of another form.
        InputError: models differ in their tensors or shapes; both are named.
    """
    method = method_named(config.method)
    for one in config.slices:
        check_count(method, len(one.sources), config.base is not None)
    _check_names(method, config)
    planner = _Planner(config, models, method, seed, buffers)
    tensors = planner.sliced() if config.is_sliced else planner.whole()
    layers = sum(_length(one) for one in config.slices) if config.is_sliced else None
    for unused in filters_without_tensors(config, [one.slices.name for one in tensors]):
        log.warning("the filter %r is part of no tensor's name, and has no effect", unused)
    # As they lie in the file, where larger items come first, so that each tensor is aligned.
    return Plan(method, tuple(sorted(tensors, key=lambda one: -one.dtype.itemsize)), layers)


def filters_without_tensors(config: MergeConfig, tensors: Sequence[str]) -> list[str]:
    """Filters of parameters that meet no tensor, each once.

    Args:
        config: what is asked for.
        tensors: names of the result's tensors.
    """
    places = [config.parameters, *(one.parameters for one in config.slices)]
    places += [source.parameters for one in config.slices for source in one.sources]
    values = [value for parameters in places for value in parameters.values() if isinstance(value, list)]
    entries = [one for value in values for one in value if isinstance(one, Mapping)]
    named = dict.fromkeys(str(one["filter"]) for one in entries if one.get("filter") not in (None, "*"))
    return [name for name in named if not any(name in tensor for tensor in tensors)]


@dataclass(frozen=True)
class _Planner:
    config: MergeConfig
    models: Mapping[str, Source]
    method: Method
    seed: int
    buffers: Buffers

    def whole(self) -> list[Planned]:
        """All tensors of whole models."""
        only = self.config.slices[0]
        sources = [self.models[one.model] for one in only.sources]
        first = self._base or sources[0]
        check_same(first, sources)
        count = _layer_count(first)
        return [
            self._planned(name, only, [Reading(one, name) for one in sources], name, _depth(name, count))
            for name in first.entries
        ]

    def sliced(self) -> list[Planned]:
        """Layers that are stacked anew, and the tensors around them."""
        found: list[Planned] = []
        total = sum(_length(one) for one in self.config.slices)
        out = 0
        for one in self.config.slices:
            for step in range(_length(one)):
                found += self._layer(one, step, out, 0.0 if total == 1 else out / (total - 1))
                out += 1
        first, last = self.config.slices[0], self.config.slices[-1]
        return [*self._around(first, is_early=True), *found, *self._around(last, is_early=False)]

    @property
    def _base(self) -> Source | None:
        return None if self.config.base is None else self.models[self.config.base]

    def _layer(self, one: SliceConfig, step: int, out: int, depth: float) -> list[Planned]:
        found = []
        sources = [(self.models[source.model], _first(source.layers) + step) for source in one.sources]
        source, number = sources[0]
        names = [match for match in map(LAYER.match, source.entries) if match and int(match[2]) == number]
        if not names:
            raise InputError(f"{source.name} has no layer {number}")
        for match in names:
            readings = [Reading(model, f"{match[1]}.{layer}.{match[3]}") for model, layer in sources]
            of_base = match[0]
            if one.base_layers is not None:
                of_base = f"{match[1]}.{one.base_layers[0] + step}.{match[3]}"
            found.append(self._planned(f"{match[1]}.{out}.{match[3]}", one, readings, of_base, depth))
        return found

    def _around(self, one: SliceConfig, is_early: bool) -> list[Planned]:
        sources = [self.models[source.model] for source in one.sources]
        names = [name for name in sources[0].entries if not LAYER.match(name) and _is_early(name) == is_early]
        return [
            self._planned(name, one, [Reading(source, name) for source in sources], name, 0.0)
            for name in names
        ]

    def _planned(
        self, name: str, one: SliceConfig, readings: list[Reading], of_base: str, depth: float
    ) -> Planned:
        base = None if self._base is None or not self.method.needs_base else Reading(self._base, of_base)
        every = [*([base] if base else []), *readings]
        for reading in every:
            if reading.tensor not in reading.source.entries:
                raise InputError(
                    f"{reading.source.name} has no tensor {reading.tensor}, which {name} is merged from"
                )
        shape = check_shapes(name, every)
        dtypes = {reading.source.entries[reading.tensor].dtype for reading in every}
        own = every[0].source.entries[every[0].tensor].own_dtype
        is_merged = own in FLOATS
        if any((one in FLOATS) != is_merged for one in dtypes):
            named = " and ".join(sorted(str(one).removeprefix("torch.") for one in dtypes))
            raise InputError(f"{name} must be of floats in all models or in none, it is of {named}")
        dtype = getattr(torch, self.config.dtype) if self.config.dtype and is_merged else own
        slices = Slices(name, shape, readings, base, common_dtype(dtypes) if is_merged else own, self.buffers)
        values = self._values(one, name, depth)
        return Planned(slices, values, dtype, is_merged, self._before(of_base, every[0], shape))

    def _before(self, of_base: str, first: Reading, shape: tuple[int, ...]) -> Reading:
        entry = None if self._base is None else self._base.entries.get(of_base)
        if self._base is None or entry is None or entry.shape != shape:
            return first
        return Reading(self._base, of_base)

    def _values(self, one: SliceConfig, name: str, depth: float) -> Values:
        """Parameters of one tensor: a model's own win over its slice's, and those over the whole merge's."""
        whole, models = {}, []
        for parameter in self.method.parameters:
            if not parameter.per_model:
                given = _first_set(parameter.name, name, depth, one.parameters, self.config.parameters)
                whole[parameter.name] = parameter.checked(given, f"for {name}")
        for source in one.sources:
            layers = (source.parameters, one.parameters, self.config.parameters)
            models.append(
                {
                    parameter.name: parameter.checked(
                        _first_set(parameter.name, name, depth, *layers), f"of {source.model} for {name}"
                    )
                    for parameter in self.method.parameters
                    if parameter.per_model
                }
            )
        return Values(whole, models, self.seed)


def _first_set(parameter: str, tensor: str, depth: float, *layers: Mapping[str, Any]) -> Any:
    for layer in layers:
        if parameter in layer:
            value = setting_at(layer[parameter], tensor, depth)
            if value is not None:
                return value
    return None


def _check_names(method: Method, config: MergeConfig) -> None:
    """Refuse parameters that the method does not have."""
    import difflib

    known = [one.name for one in method.parameters]
    own = {one.name for one in method.parameters if one.per_model}
    places = [("parameters", config.parameters, known)]
    for one in config.slices:
        places.append(("the slice's parameters", one.parameters, known))
        places += [
            (f"the parameters of {source.model}", source.parameters, sorted(own)) for source in one.sources
        ]
    for place, given, allowed in places:
        # mergekit's int8_mask saves memory that petkit does not need: it changes no number.
        for name in given.keys() - {*allowed, "int8_mask"}:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(allowed) or 'none'}"
            raise ConfigError(f"{method.name} has no {name} in {place}{hint}")


def check_same(first: Source, sources: Sequence[Source]) -> None:
    """Refuse models that have not the same tensors.

    Raises:
        InputError: names two models and tensors.
    """
    for source in sources:
        ours, theirs = set(first.entries), set(source.entries)
        lacking = [
            f"{one.name} lacks {named_few(sorted(names))}"
            for one, names in ((first, theirs - ours), (source, ours - theirs))
            if names
        ]
        if lacking:
            raise InputError(
                f"{first.name} and {source.name} must have the same tensors: {' and '.join(lacking)}"
            )


def named_few(names: Sequence[str], few: int = 4) -> str:
    """The first names of a list, and how many follow."""
    more = f" and {len(names) - few} more" if len(names) > few else ""
    return f"{', '.join(names[:few])}{more}"


def _layer_count(source: Source) -> int:
    numbers = [int(match[2]) for match in map(LAYER.match, source.entries) if match]
    return max(numbers, default=0) + 1


def _depth(name: str, layers: int) -> float:
    match = LAYER.match(name)
    if match:
        return int(match[2]) / max(1, layers - 1)
    # As mergekit has it, for what stands behind the layers too.
    return 0.0


def _is_early(name: str) -> bool:
    """Whether a tensor stands before the layers, such as an embedding."""
    return any(part in name for part in EARLY)


def _first(layers: tuple[int, int] | None) -> int:
    return 0 if layers is None else layers[0]


def _length(one: SliceConfig) -> int:
    layers = one.sources[0].layers
    return 0 if layers is None else layers[1] - layers[0]
