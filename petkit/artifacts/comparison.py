"""Two artifacts side by side: what differs in their manifests, their configurations and their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from petkit.artifacts.dense import to_float32
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.reader import Artifact
from petkit.artifacts.summary import natural
from petkit.artifacts.tensor_file import RawTensor

# How an artifact came to be and where it was written; neither changes what it computes.
INCIDENTAL = {("petkit.json", "lineage"), ("petkit.json", "source"), ("config.yaml", "output")}


@dataclass(frozen=True)
class Difference:
    """One place where two artifacts differ.

    Args:
        where: `petkit.json`, `config.yaml` or `tensors`.
        name: dotted key, or tensor name.
        first: value in the first artifact, in words; "-" when it is not there.
        second: value in the second one.
        detail: for tensors, how much differs.
    """

    where: str
    name: str
    first: str
    second: str
    detail: str = ""

    @property
    def is_incidental(self) -> bool:
        """Whether only the history or the place of the artifacts differs, not what they hold."""
        return (self.where, self.name.partition(".")[0]) in INCIDENTAL


def compare(first: Artifact, second: Artifact) -> list[Difference]:
    """List where two artifacts differ; an empty list means that they say and compute the same.

    Args:
        first, second: the artifacts.

    Returns:
        Differences in the order petkit.json, config.yaml, tensors; naturally sorted names within each.

    Raises:
        ConfigError: a `config.yaml` is broken.
    """
    manifests = [artifact.manifest.model_dump(mode="json") for artifact in (first, second)]
    return [
        *_compare_values("petkit.json", *manifests),
        *_compare_values("config.yaml", first.config, second.config),
        *_compare_tensors(first, second),
    ]


def _compare_values(where: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    left, right = dict(_flatten(first)), dict(_flatten(second))
    for name in sorted(left.keys() | right.keys(), key=natural):
        # Compared as text, so that 1 and 1.0, or false and 0, count as different: they do in the file.
        shown = [repr(values[name]) if name in values else "-" for values in (left, right)]
        if shown[0] != shown[1]:
            yield Difference(where, name, *shown)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _compare_tensors(first: Artifact, second: Artifact) -> Iterator[Difference]:
    left, right = _tensors(first), _tensors(second)
    for name in sorted(left.keys() | right.keys(), key=natural):
        one, other = left.get(name), right.get(name)
        shown = ["-" if tensor is None else _describe(tensor) for tensor in (one, other)]
        detail = _detail(one, other)
        if shown[0] != shown[1] or detail:
            yield Difference("tensors", name, shown[0], shown[1], detail)


def _tensors(artifact: Artifact) -> dict[str, PackedMatrix | RawTensor]:
    return {**artifact.packed, **artifact.raw_dense}


def _describe(tensor: PackedMatrix | RawTensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    if isinstance(tensor, PackedMatrix):
        return f"{shape}, {tensor.bits} bits, {tensor.kind}"
    return f"{shape}, {tensor.dtype}"


def _detail(first: PackedMatrix | RawTensor | None, second: PackedMatrix | RawTensor | None) -> str:
    if isinstance(first, PackedMatrix) and isinstance(second, PackedMatrix):
        return _packed_detail(first, second)
    if isinstance(first, RawTensor) and isinstance(second, RawTensor) and first.shape == second.shape:
        return _dense_detail(first, second)
    return ""


def _packed_detail(first: PackedMatrix, second: PackedMatrix) -> str:
    parts = []
    if (first.shape, first.bits) == (second.shape, second.bits):
        flipped = int(np.unpackbits(first.stream ^ second.stream).sum())
        codes = int((first.codes() != second.codes()).sum()) if flipped else 0
        total = first.shape[0] * first.shape[1]
        if flipped:
            parts.append(f"{flipped} bits flipped, {codes} of {total} codes ({codes / total:.2%})")
    for name in ("shift", "scale"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            parts.append(f"{name} {one:.6g} -> {other:.6g}")
    return "; ".join(parts)


def _dense_detail(first: RawTensor, second: RawTensor) -> str:
    one, other = to_float32(first).astype(np.float64), to_float32(second).astype(np.float64)
    gap = np.abs(one - other)
    if not gap.size or not gap.any():
        return ""
    return f"{int((gap > 0).sum())} of {gap.size} values differ, by at most {gap.max():.6g}"
