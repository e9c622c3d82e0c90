"""Adapters to an adapter, without base weights: bottlenecks side by side, or the nearest of a given rank."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from petkit.artifacts import Artifact, Manifest
from petkit.errors import ConfigError, InputError
from petkit.merging.bases import described, same_base
from petkit.merging.low_rank import Pair, Part, nearest_of_rank, norm, of_rank, side_by_side

DOWN, UP = ".down", ".up"
DEFAULT_TARGETS = ("q", "v")
# The widest bottleneck that an artifact may have.
MAX_RANK = 4096


@dataclass(frozen=True, eq=False)
class MergedSite:
    """An adapter of the result.

    Args:
        name: of the site.
        pair: its matrices.
        ranks: of the adapters that were merged; 0 where one lacks the site.
        norm: of the product before the rank was cut, Frobenius.
        lost: of what a smaller rank lost, Frobenius.
        inputs: sum of the norms of what was merged, by which rounding is told from a change.
    """

    name: str
    pair: Pair
    ranks: tuple[int, ...]
    norm: float
    lost: float
    inputs: float

    @property
    def error(self) -> float:
        """The share of the product's norm that a smaller rank lost."""
        return self.lost / self.norm if self.norm > 0 else 0.0


@dataclass(frozen=True, eq=False)
class MergedAdapter:
    """A merged adapter in memory, with 32-bit weights.

    Args:
        manifest: its `petkit.json`, without a lineage yet.
        sites: the adapters, in the order of the first one that was merged.
        others: heads and other tensors that were trained whole.
    """

    manifest: Manifest
    sites: tuple[MergedSite, ...]
    others: dict[str, Tensor]

    @property
    def dense(self) -> dict[str, Tensor]:
        """Tensors by name, as an artifact stores them."""
        found = {}
        for site in self.sites:
            found[f"{site.name}{DOWN}.weight"] = site.pair.down
            found[f"{site.name}{UP}.weight"] = site.pair.up
        return found | self.others

    @property
    def errors(self) -> dict[str, float]:
        """Of each site the share of the exact merge's norm that a smaller rank lost."""
        return {site.name: site.error for site in self.sites if site.lost > 0}


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
    check_alike(adapters)
    pairs = pairs_of(adapters)
    check_rank(adapters, rank, max(sum(ranks_of(own)) for own in pairs.values()))
    sites = tuple(add_side_by_side(name, own, weights, rank) for name, own in pairs.items())
    others = [whole_tensors(adapter) for adapter in adapters]
    check_whole_tensors(adapters, others)
    means = {name: weighted_mean([own[name] for own in others], weights) for name in others[0]}
    return MergedAdapter(merged_manifest(adapters, sites), sites, means)


def add_side_by_side(
    name: str, pairs: Sequence[Pair | None], weights: Sequence[float], rank: int | None
) -> MergedSite:
    """One site's adapters by weight.

    Args:
        name: of the site.
        pairs: of each adapter; None where it lacks the site.
        weights: of each adapter.
        rank: the most that the result may have; None for as much as there is.
    """
    own = [(pair, weight) for pair, weight in zip(pairs, weights, strict=True) if pair is not None]
    # What counts for nothing needs no place.
    own = [one for one in own if one[1] != 0] or own[:1]
    exact = side_by_side([Part(*pair, weight) for pair, weight in own])
    size, lost, kept = norm(exact), 0.0, exact
    if rank is not None and rank < len(exact.down):
        down, up, left = of_rank(exact.down, exact.up, rank)
        kept, lost = Pair(down, up, exact.scale), left * exact.scale
    inputs = sum(abs(weight) * norm(pair) for pair, weight in own)
    return MergedSite(name, kept, ranks_of(pairs), size, lost, inputs)


def cut_to_rank(name: str, pairs: Sequence[Pair | None], merged: Tensor, rank: int) -> MergedSite:
    """A site whose products were merged to a matrix.

    Args:
        name: of the site.
        pairs: of each adapter.
        merged: (out, in).
        rank: of the result, at most the matrix's smaller side.
    """
    down, up, lost = nearest_of_rank(merged, min(rank, *merged.shape))
    size = float(merged.double().norm())
    inputs = sum(norm(pair) for pair in pairs if pair is not None)
    return MergedSite(name, Pair(down, up, 1.0), ranks_of(pairs), size, lost, inputs)


def matrices_of(artifact: Artifact) -> dict[str, Tensor]:
    """The adapter matrices of an artifact, packed ones dequantised: module name to float32 (out, in)."""
    found = {
        name: torch.from_numpy(matrix.dequantize())
        for name, matrix in artifact.packed.items()
        if name.endswith((DOWN, UP))
    }
    for name, tensor in artifact.dense.items():
        module = name.removesuffix(".weight")
        if module != name and module.endswith((DOWN, UP)):
            found[module] = tensor.float()
    return found


def whole_tensors(artifact: Artifact) -> dict[str, Tensor]:
    """Heads and other tensors of an artifact that were trained whole, float32 by name."""
    found = {
        name: tensor.float()
        for name, tensor in artifact.dense.items()
        if not re.search(r"\.(down|up)\.weight$", name)
    }
    if "head" in artifact.packed:
        found["head.weight"] = torch.from_numpy(artifact.packed["head"].dequantize())
    return found


def pairs_of(adapters: Sequence[Artifact]) -> dict[str, tuple[Pair | None, ...]]:
    """What each adapter has at every site, None where nothing, in the order of the first that has a site.

    Raises:
        InputError: shapes differ, or there is no adapter in any; the adapters are named.
    """
    found: dict[str, list[Pair | None]] = defaultdict(lambda: [None] * len(adapters))
    for place, artifact in enumerate(adapters):
        matrices = matrices_of(artifact)
        for name, down in matrices.items():
            site = name.removesuffix(DOWN)
            if name != site:
                pair = Pair(down, matrices[f"{site}{UP}"], artifact.manifest.scaling_of(site))
                found[site][place] = pair
    if not found:
        raise InputError(f"{adapters[0].folder} holds no adapter: there is nothing to merge")
    for site, pairs in found.items():
        _check_shapes(site, pairs, adapters)
    return {site: tuple(pairs) for site, pairs in found.items()}


def shape_of(pairs: Sequence[Pair | None]) -> tuple[int, int]:
    """(out, in) of a site."""
    first = next(pair for pair in pairs if pair is not None)
    return len(first.up), first.down.shape[1]


def ranks_of(pairs: Sequence[Pair | None]) -> tuple[int, ...]:
    """Of each adapter at a site, 0 where it lacks it."""
    return tuple(0 if pair is None else len(pair.down) for pair in pairs)


def _check_shapes(site: str, pairs: Sequence[Pair | None], adapters: Sequence[Artifact]) -> None:
    shapes = {
        adapter: (len(pair.up), pair.down.shape[1])
        for adapter, pair in zip(range(len(adapters)), pairs, strict=True)
        if pair is not None
    }
    first = next(iter(shapes))
    for place, shape in shapes.items():
        if shape != shapes[first]:
            raise InputError(
                f"{site} must have one shape in all adapters, {adapters[place].folder} maps {shape[1]} to "
                f"{shape[0]} and {adapters[first].folder} {shapes[first][1]} to {shapes[first][0]}"
            )


def check_whole_tensors(adapters: Sequence[Artifact], others: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse adapters that do not hold the same tensors beside their matrices, such as one with a head.

    Raises:
        InputError: names two adapters and the tensors.
    """
    for artifact, own in zip(adapters, others, strict=True):
        if own.keys() != others[0].keys():
            differing = sorted(own.keys() ^ others[0].keys())
            raise InputError(
                f"{adapters[0].folder} and {artifact.folder} must hold the same tensors beside their "
                f"adapters, they differ in {', '.join(differing[:4])}"
            )
        for name, tensor in own.items():
            if tensor.shape != others[0][name].shape:
                raise InputError(
                    f"{name} must have one shape, {adapters[0].folder} has {tuple(others[0][name].shape)} "
                    f"and {artifact.folder} {tuple(tensor.shape)}"
                )


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of tensors that were trained whole, float32; one of weight 1 stays as it is.

    Raises:
        ConfigError: the weights sum to 0.
    """
    total = sum(weights)
    if abs(total) < 1e-8:
        raise ConfigError("the weights must not sum to 0, since heads are averaged by them")
    first, *others = (one.double() * (weight / total) for one, weight in zip(tensors, weights, strict=True))
    for other in others:
        first += other
    return first.float()


def check_rank(adapters: Sequence[Artifact], rank: int | None, possible: int) -> None:
    """Refuse a rank that the result cannot have.

    Args:
        adapters: that are merged.
        rank: asked for; None for all of the possible.
        possible: the largest that there can be.

    Raises:
        ConfigError: says which it may have.
    """
    first = adapters[0]
    if rank is not None:
        if first.manifest.adapter.get("method", "lora") != "lora":
            raise ConfigError(
                f"rank is for LoRA: {first.folder} has an activation in its bottleneck, so that only "
                "bottlenecks side by side give the same"
            )
        if not 1 <= rank <= possible:
            raise ConfigError(f"rank must be from 1 to {possible}, which is the exact merge's, got {rank}")
    elif possible > MAX_RANK:
        raise ConfigError(
            f"side by side the bottlenecks have {possible} units, at most {MAX_RANK} are kept: give a rank"
        )


def check_alike(adapters: Sequence[Artifact]) -> None:
    """Refuse adapters that do not belong to one base, method and task.

    Raises:
        InputError: names two adapters and what differs.
    """
    first = adapters[0]
    for other in adapters[1:]:
        one, two = first.manifest, other.manifest
        if not same_base(one.base, two.base):
            message = _unlike(first, other, "base", described(one.base), described(two.base))
            unknown = [own for own, base in ((first, one.base), (other, two.base)) if base.sha256 is None]
            if unknown:
                folder = unknown[0].folder
                message += f"; petkit convert {folder} --from peft --base BASE -o OUT records a hash"
            raise InputError(message)
        pairs: Mapping[str, tuple[object, object]] = {
            "method": (one.adapter.get("method"), two.adapter.get("method")),
            "task": (one.task and one.task.type, two.task and two.task.type),
            "classes": (one.task and one.task.classes, two.task and two.task.classes),
            "pooling": (one.model.get("pooling"), two.model.get("pooling")),
        }
        for what, (own, theirs) in pairs.items():
            if own != theirs:
                raise InputError(_unlike(first, other, what, own, theirs))
        pixels = [manifest.task.preprocess for manifest in (one, two) if manifest.task]
        if len(pixels) == 2 and None not in pixels and pixels[0] != pixels[1]:
            raise InputError(_unlike(first, other, "preprocess", *pixels))


def _unlike(first: Artifact, other: Artifact, what: str, own: object, theirs: object) -> str:
    return f"{first.folder} and {other.folder} must have the same {what}, got {own} and {theirs}"


def merged_manifest(adapters: Sequence[Artifact], sites: Sequence[MergedSite]) -> Manifest:
    """The `petkit.json` of a merge, of 32 bits and without a lineage.

    Args:
        adapters: that were merged.
        sites: of the result.
    """
    manifests = [one.manifest for one in adapters]
    # The one that knows its base best tells how to load it.
    known = next((one for one in manifests if one.base.sha256), manifests[0])
    scales = {site.name: site.pair.scale for site in sites}
    same = len(set(scales.values())) == 1
    adapter: dict[str, Any] = {
        **manifests[0].adapter,
        "bits": 32,
        "scale": next(iter(scales.values())) if same else 1.0,
        "bottleneck": max(len(site.pair.down) for site in sites),
    }
    targets = [tuple(one.adapter.get("targets") or DEFAULT_TARGETS) for one in manifests]
    if len(set(targets)) > 1:
        adapter["targets"] = list(dict.fromkeys(target for own in targets for target in own))
    if adapter.get("head") == "binary":
        adapter["head"] = "fp32"
    return manifests[0].model_copy(
        update={
            "base": known.base,
            "model": known.model,
            "adapter": adapter,
            "task": _task(manifests),
            "scaling": {} if same else scales,
            "lineage": (),
            "source": _source(manifests),
            "tensors_sha256": None,
        }
    )


def _task(manifests: Sequence[Manifest]) -> Any:
    tasks = [one.task for one in manifests if one.task]
    if not tasks:
        return None
    lengths = [one.max_length for one in tasks if one.max_length]
    pixels = next((one.preprocess for one in tasks if one.preprocess), None)
    return tasks[0].model_copy(update={"preprocess": pixels, "max_length": max(lengths) if lengths else None})


def _source(manifests: Sequence[Manifest]) -> Any:
    """Where the adapters sit in PEFT's model, where all know it and agree: so the merge can go back there."""
    sources = [one.source for one in manifests]
    first = sources[0]
    if first is None or first.format != "peft":
        return first if len(sources) == 1 else None
    places = [one and (one.format, one.settings.get("prefix"), one.settings.get("head")) for one in sources]
    configs = [one.settings.get("adapter_config", {}) for one in sources if one]
    targets = [config.get("target_modules") for config in configs]
    if any(place != places[0] for place in places):
        return None
    if all(own == targets[0] for own in targets):
        return first
    if not all(isinstance(own, list) for own in targets):
        return None
    config = {**configs[0], "target_modules": sorted({name for own in targets for name in own})}
    return first.model_copy(update={"settings": {**first.settings, "adapter_config": config}})
