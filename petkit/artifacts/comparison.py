"""Two artifacts side by side: what differs in their manifests, their configurations and their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from petkit.artifacts.any_kind import Contents
from petkit.artifacts.dense import to_float32
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.reader import CONFIG, read_config
from petkit.artifacts.summary import natural
from petkit.artifacts.tensor_file import RawTensor
from petkit.errors import InputError

# How an artifact came to be and where it was written; neither changes what it computes.
INCIDENTAL = {("petkit.json", "lineage"), ("petkit.json", "source"), ("config.yaml", "output")}


# Numbers of a dense tensor that are compared at a time.
BLOCK = 1 << 22

# Stands for a value that one of the artifacts does not have; null is a value.
ABSENT: Final = object()


@dataclass(frozen=True)
class Difference:
    """One place where two artifacts differ.

    Args:
        where: `petkit.json`, `config.yaml` or `tensors`.
        name: dotted key, or tensor name.
        first: value in the first artifact, or form of the tensor, as in JSON; ABSENT when it is not there.
        second: the same of the second one.
        change: for tensors of one form, how much differs.
    """

    where: str
    name: str
    first: Any
    second: Any
    change: Mapping[str, Any] = field(default_factory=dict)

    def payload(self) -> dict[str, Any]:
        """The difference as JSON values; without `first` or `second` where it is not there."""
        sides = {"first": self.first, "second": self.second}
        present = {key: value for key, value in sides.items() if value is not ABSENT}
        change = {"change": dict(self.change)} if self.change else {}
        return {"where": self.where, "name": self.name, **present, **change}

    @property
    def is_incidental(self) -> bool:
        """Whether only the history or the place of the artifacts differs, not what they hold."""
        return (self.where, self.name.partition(".")[0]) in INCIDENTAL


def compare(first: Contents, second: Contents) -> list[Difference]:
    """List where two artifacts differ; an empty list means that they say and compute the same.

    Args:
        first, second: the artifacts, of one kind.

    Returns:
        Differences in the order petkit.json, config.yaml, tensors; naturally sorted names within each.

    Raises:
        ConfigError: a `config.yaml` is broken.
        InputError: they are of two kinds.
    """
    kinds = [str(getattr(one.manifest, "kind", "adapter")) for one in (first, second)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{first.folder} is of kind {kinds[0]} and {second.folder} of kind {kinds[1]}: give two alike"
        )
    manifests = [artifact.manifest.model_dump(mode="json") for artifact in (first, second)]
    return [
        *_compare_values("petkit.json", *manifests),
        *_compare_values("config.yaml", _config(first), _config(second)),
        *_compare_tensors(first, second),
    ]


def _config(artifact: Contents) -> Mapping[str, Any]:
    return read_config(artifact.folder) if (artifact.folder / CONFIG).exists() else {}


def _compare_values(where: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    left, right = dict(_flatten(first)), dict(_flatten(second))
    for name in sorted(left.keys() | right.keys(), key=natural):
        one, other = left.get(name, ABSENT), right.get(name, ABSENT)
        # Compared as text, so that 1 and 1.0, or false and 0, count as different: they do in the file.
        if repr(one) != repr(other):
            yield Difference(where, name, one, other)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _compare_tensors(first: Contents, second: Contents) -> Iterator[Difference]:
    names = {*first.packed, *first.raw_dense, *second.packed, *second.raw_dense}
    for name in sorted(names, key=natural):
        one, other = _tensor(first, name), _tensor(second, name)
        form, other_form = (ABSENT if tensor is None else _form(tensor) for tensor in (one, other))
        change = _change(one, other) if form == other_form else {}
        if form != other_form or change:
            yield Difference("tensors", name, form, other_form, change)


def _tensor(artifact: Contents, name: str) -> PackedMatrix | RawTensor | None:
    packed = artifact.packed.get(name)
    return artifact.raw_dense.get(name) if packed is None else packed


def _form(tensor: PackedMatrix | RawTensor) -> dict[str, Any]:
    if isinstance(tensor, PackedMatrix):
        return {"shape": list(tensor.shape), "bits": tensor.bits, "kind": tensor.kind}
    return {"shape": list(tensor.shape), "dtype": tensor.dtype}


def _change(
    first: PackedMatrix | RawTensor | None, second: PackedMatrix | RawTensor | None
) -> dict[str, Any]:
    if isinstance(first, PackedMatrix) and isinstance(second, PackedMatrix):
        return _packed_change(first, second)
    if isinstance(first, RawTensor) and isinstance(second, RawTensor):
        return _dense_change(first, second)
    return {}


def _packed_change(first: PackedMatrix, second: PackedMatrix) -> dict[str, Any]:
    change: dict[str, Any] = {}
    flipped = int(np.unpackbits(first.stream ^ second.stream).sum())
    if flipped:
        codes = int((first.codes() != second.codes()).sum())
        total = first.shape[0] * first.shape[1]
        change = {"flipped_bits": flipped, "changed_codes": codes, "codes": total}
    for name in ("shift", "scale"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            change[name] = [float(one), float(other)]
    return change


def _dense_change(first: RawTensor, second: RawTensor) -> dict[str, Any]:
    if np.array_equal(first.data, second.data):
        return {}
    width = len(first.data) // math.prod(first.shape)
    changed, largest = 0, 0.0
    # A part at a time: those of whole models are large.
    for start in range(0, len(first.data), BLOCK * width):
        one, other = (_part(tensor, start, BLOCK * width) for tensor in (first, second))
        gap = np.abs(one - other)
        changed += int((gap != 0).sum())
        largest = max(largest, float(gap.max()))
    if not changed:
        return {}
    return {"changed_values": changed, "values": len(first.data) // width, "largest_difference": largest}


def _part(tensor: RawTensor, start: int, size: int) -> NDArray[np.float64]:
    data = tensor.data[start : start + size]
    count = len(data) * math.prod(tensor.shape) // len(tensor.data)
    return to_float32(RawTensor(tensor.dtype, (count,), data)).astype(np.float64)
