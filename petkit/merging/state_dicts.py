"""Merging of tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from petkit.errors import ConfigError, InputError
from petkit.merging.combining import Method
from petkit.merging.parameters import Values
from petkit.merging.registry import method_named
from petkit.merging.slices import Buffers, Reading, Slices, check_shapes
from petkit.merging.sources import Source, StateDict
from petkit.merging.tensors import merged_tensor

# Dtypes that are merged; tensors of others, such as counters, are those of the base or the first model.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def merge_state_dicts(
    method: str,
    models: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge state dicts.

    Args:
        method: a name of `petkit.merging.registry`.
        models: one state dict or more, all of the same names and shapes.
        base: what the models were fine-tuned from, for methods that need it.
        weights: of the models; default 1 each.
        seed: of methods that draw random numbers.
        dtype: of the result; default: each tensor's own of the base, or else of the first model.
        parameters: of the method, such as density=0.5 or scope="global"; a list has a value for each model.

    Returns:
        Merged tensors, in new memory. Arithmetic is float32, rounded once at the end; a tensor that is no
        float is the base's or the first model's.

    Raises:
        ConfigError: no such method or parameter, or values out of range.
        InputError: names or shapes differ, or a number is not finite; the tensor is named.

    Source:
        The methods' own, see `petkit.merging.registry`.
    """
    chosen = method_named(method)
    sources = [StateDict(f"model {i}", tensors) for i, tensors in enumerate(models)]
    origin = None if base is None else StateDict("base", base)
    _check(chosen, sources, origin)
    values = _values(chosen, len(models), weights, parameters, seed)
    names = list((origin or sources[0]).entries)
    buffers = Buffers()
    floats = [name for name in names if (origin or sources[0]).entries[name].dtype in FLOATS]
    tensors = {name: _slices(name, sources, origin, buffers) for name in floats}
    surveyed = chosen.survey([(one, values) for one in tensors.values()])
    found: dict[str, Tensor] = {}
    for name in names:
        own = (models[0] if base is None else base)[name]
        if name in tensors:
            merged = merged_tensor(chosen, tensors[name], values, surveyed, dtype or own.dtype)
            found[name] = merged.view(own.shape)
        else:
            found[name] = own.detach().clone()
    return found


def _slices(name: str, sources: Sequence[Source], base: Source | None, buffers: Buffers) -> Slices:
    readings = [Reading(source, name) for source in sources]
    origin = None if base is None else Reading(base, name)
    shape = check_shapes(name, [*([origin] if origin else []), *readings])
    dtypes = {one.source.entries[name].dtype for one in (*readings, *([origin] if origin else []))}
    return Slices(name, shape, readings, origin, common_dtype(dtypes), buffers)


def common_dtype(dtypes: set[torch.dtype]) -> torch.dtype:
    """The dtype that holds numbers of several exactly: their own, or float32."""
    return next(iter(dtypes)) if len(dtypes) == 1 else torch.float32


def _check(method: Method, sources: Sequence[Source], base: Source | None) -> None:
    check_count(method, len(sources), base is not None)
    wanted = set((base or sources[0]).entries)
    for source in sources:
        differing = sorted(wanted ^ set(source.entries))
        if differing:
            both = f"{source.name} and {(base or sources[0]).name}"
            raise InputError(
                f"all models must have the same tensors, {both} differ in {', '.join(differing[:4])}"
            )


def check_count(method: Method, count: int, has_base: bool) -> None:
    """Refuse more or fewer models than a method takes, and a base that is missing.

    Raises:
        ConfigError: says how many it takes.
    """
    least, most = method.models
    if not least <= count <= most:
        between = f"{least}" if least == most else f"{least} to {most}"
        raise ConfigError(f"{method.name} merges {between} models beside the base, got {count}")
    if method.needs_base and not has_base:
        raise ConfigError(f"{method.name} needs base_model, which the models were fine-tuned from")


def _values(
    method: Method, count: int, weights: Sequence[float] | None, given: Mapping[str, Any], seed: int
) -> Values:
    known = {one.name: one for one in method.parameters}
    # `lambda` is a word of the language.
    named = {name.rstrip("_"): value for name, value in given.items()}
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise ConfigError(f"{method.name} has no parameter {unknown[0]}; it has {', '.join(known) or 'none'}")
    if weights is not None and "weight" not in known:
        raise ConfigError(f"{method.name} has no weights, leave them out")
    named.setdefault("weight", [1.0] * count if weights is None else list(weights))
    whole, models = {}, []
    for name, parameter in known.items():
        if not parameter.per_model:
            whole[name] = parameter.checked(named.get(name), "")
    for i in range(count):
        models.append(
            {
                name: parameter.checked(_of_model(named.get(name), i, count, name), f"of model {i}")
                for name, parameter in known.items()
                if parameter.per_model
            }
        )
    return Values(whole, models, seed)


def _of_model(value: Any, i: int, count: int, name: str) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if len(value) != count:
        raise ConfigError(f"{name} must have a value for each of the {count} models, got {len(value)}")
    return value[i]
