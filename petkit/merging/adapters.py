"""Adapters to an adapter, without base weights: bottlenecks side by side, or the nearest of a given rank."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from petkit.artifacts import Artifact, Manifest
from petkit.errors import ConfigError, InputError

_DOWN, _UP = ".down", ".up"


class Part(NamedTuple):
    """One adapter's share of a site: factor times up, of what down gives."""

    down: Tensor
    """float32 (rank, in)."""

    up: Tensor
    """float32 (out, rank)."""

    factor: float


@dataclass(frozen=True, eq=False)
class MergedAdapter:
    """A merged adapter in memory, with 32-bit weights.

    Args:
        manifest: its `petkit.json`, without a lineage yet.
        dense: tensors by name, as an artifact stores them.
        errors: of each site the share of the exact merge's norm that a smaller rank lost; empty when exact.
    """

    manifest: Manifest
    dense: dict[str, Tensor]
    errors: dict[str, float]


def merge_adapters(
    adapters: Sequence[Artifact], weights: Sequence[float], rank: int | None = None
) -> MergedAdapter:
    """Add adapters of one base.

    Args:
        adapters: artifacts, of any bits; ranks, scales and sites may differ.
        weights: factor of each adapter's output.
        rank: of the result; None puts all bottlenecks side by side, which is exact also where the bottleneck
            has an activation. A smaller one takes the nearest of that rank, LoRA only.

    Returns:
        The merged adapter. The head is the mean by weight where all have one.

    Raises:
        ConfigError: a rank for adapters with an activation, or as many weights as there are no adapters.
        InputError: bases, methods, classes or shapes that differ; both adapters are named.

    Source:
        sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, ...] [A_1; ...]. The nearest of a rank: Eckart and Young 1936.
    """
    if len(weights) != len(adapters):
        raise ConfigError(f"weights must be one for each of the {len(adapters)} adapters, got {len(weights)}")
    first = adapters[0]
    _check_alike(first, adapters)
    if rank is not None and first.manifest.adapter.get("method", "lora") != "lora":
        raise ConfigError(
            f"rank is for LoRA: {first.folder} has an activation in its bottleneck, so that only bottlenecks "
            "side by side give the same"
        )
    sites = _sites(adapters, weights)
    dense: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for site, parts in sites.items():
        down, up = side_by_side(parts)
        if rank is not None and rank < len(down):
            down, up, errors[site] = of_rank(down, up, rank)
        dense[f"{site}{_DOWN}.weight"], dense[f"{site}{_UP}.weight"] = down, up
    dense |= _others(adapters, weights)
    return MergedAdapter(_manifest(first, dense), dense, errors)


def side_by_side(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """Bottlenecks side by side: the sum of their outputs, exactly.

    Args:
        parts: of one site.

    Returns:
        down (sum of ranks, in) and up (out, sum of ranks), the factors in up.
    """
    down = torch.cat([part.down for part in parts])
    up = torch.cat([part.up * part.factor for part in parts], dim=1)
    return down, up


def of_rank(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of a smaller rank.

    Args:
        down: (larger rank, in).
        up: (out, larger rank).
        rank: of the result.

    Returns:
        down (rank, in) and up (out, rank), which share the singular values evenly; and what is lost, as a
        share of the product's Frobenius norm.

    Source:
        Eckart and Young 1936, by QR of both factors: the product itself is never made.
    """
    left, small_up = torch.linalg.qr(up.double())
    right, small_down = torch.linalg.qr(down.double().T)
    u, values, v = torch.linalg.svd(small_up @ small_down.T)
    root = values[:rank].sqrt()
    total = float(values.square().sum())
    lost = float(values[rank:].square().sum())
    kept_up = (left @ u[:, :rank]) * root
    kept_down = root[:, None] * (v[:rank] @ right.T)
    return kept_down.float(), kept_up.float(), (lost / total) ** 0.5 if total > 0 else 0.0


def matrices_of(artifact: Artifact) -> dict[str, Tensor]:
    """The adapter matrices of an artifact, packed ones dequantised: module name to float32 (out, in)."""
    found = {
        name: torch.from_numpy(matrix.dequantize())
        for name, matrix in artifact.packed.items()
        if name.endswith((_DOWN, _UP))
    }
    for name, tensor in artifact.dense.items():
        module = name.removesuffix(".weight")
        if module.endswith((_DOWN, _UP)):
            found[module] = tensor.float()
    return found


def _sites(adapters: Sequence[Artifact], weights: Sequence[float]) -> dict[str, list[Part]]:
    """The parts of every site, in the order of the first adapter that has it."""
    found: dict[str, list[Part]] = defaultdict(list)
    for artifact, weight in zip(adapters, weights, strict=True):
        matrices = matrices_of(artifact)
        for name, down in matrices.items():
            site = name.removesuffix(_DOWN)
            if name == site:
                continue
            part = Part(down, matrices[f"{site}{_UP}"], weight * artifact.manifest.scaling_of(site))
            known = found[site]
            if known and (known[0].down.shape[1], len(known[0].up)) != (down.shape[1], len(part.up)):
                raise InputError(
                    f"{site} must have one shape in all adapters, {artifact.folder} maps {down.shape[1]} to "
                    f"{len(part.up)} and another one {known[0].down.shape[1]} to {len(known[0].up)}"
                )
            known.append(part)
    if not found:
        raise InputError(f"{adapters[0].folder} holds no adapter: there is nothing to merge")
    return dict(found)


def _others(adapters: Sequence[Artifact], weights: Sequence[float]) -> dict[str, Tensor]:
    """Heads and other tensors that were trained whole: their mean by weight."""
    total = sum(weights)
    kept = [
        {
            name: one.float()
            for name, one in artifact.dense.items()
            if not re.search(r"\.(down|up)\.weight$", name)
        }
        for artifact in adapters
    ]
    for artifact, own in zip(adapters, kept, strict=True):
        if "head" in artifact.packed:
            own["head.weight"] = torch.from_numpy(artifact.packed["head"].dequantize())
        if own.keys() != kept[0].keys():
            differing = sorted(own.keys() ^ kept[0].keys())
            both = f"{adapters[0].folder} and {artifact.folder}"
            raise InputError(
                f"{both} must hold the same tensors beside their adapters, they differ in "
                f"{', '.join(differing[:4])}"
            )
    if kept[0] and abs(total) < 1e-8:
        raise ConfigError("the weights must not sum to 0, since heads are averaged by them")
    shares = torch.tensor([weight / total for weight in weights])
    return {name: torch.tensordot(shares, torch.stack([own[name] for own in kept]), 1) for name in kept[0]}


def _check_alike(first: Artifact, adapters: Sequence[Artifact]) -> None:
    for other in adapters[1:]:
        one, two = first.manifest, other.manifest
        pairs: Mapping[str, tuple[object, object]] = {
            "base": (one.base.sha256 or one.base.id, two.base.sha256 or two.base.id),
            "method": (one.adapter.get("method"), two.adapter.get("method")),
            "task": (one.task and one.task.type, two.task and two.task.type),
            "classes": (one.task and one.task.classes, two.task and two.task.classes),
        }
        for what, (own, theirs) in pairs.items():
            if own != theirs:
                raise InputError(
                    f"{first.folder} and {other.folder} must have the same {what}, got {own} and {theirs}"
                )


def _manifest(first: Artifact, dense: Mapping[str, Tensor]) -> Manifest:
    widths = {len(one) for name, one in dense.items() if name.endswith(f"{_DOWN}.weight")}
    adapter = {**first.manifest.adapter, "bits": 32, "scale": 1.0, "bottleneck": max(widths)}
    changes = {"adapter": adapter, "scaling": {}, "lineage": (), "source": None, "tensors_sha256": None}
    return first.manifest.model_copy(update=changes)
