"""mergekit's YAML over adapters: what is merged at each site, by which weights, and the merge itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from petkit.artifacts import Artifact
from petkit.artifacts.source import is_adapter_folder
from petkit.errors import ConfigError
from petkit.merging.adapters import (
    MergedAdapter,
    MergedSite,
    add_side_by_side,
    check_alike,
    check_rank,
    check_whole_tensors,
    cut_to_rank,
    merged_manifest,
    pairs_of,
    ranks_of,
    shape_of,
    weighted_mean,
    whole_tensors,
)
from petkit.merging.combining import Method
from petkit.merging.config import MergeConfig, SourceConfig
from petkit.merging.low_rank import Pair, Product
from petkit.merging.parameters import Values, normalized
from petkit.merging.plan import Planned, plan_merge
from petkit.merging.registry import method_named
from petkit.merging.slices import Buffers
from petkit.merging.sources import Entry
from petkit.merging.tensors import merged_tensor

EXACT = ("linear", "task_arithmetic")
# These merge the products of each site, over a base of zeros, and are then cut to a rank.
BY_PRODUCT = (
    "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce",
    "tsv", "model_stock",
)  # fmt: skip
DRAWING = ("dare_linear", "dare_ties", "della", "della_linear")
ZERO = "a base of zeros"


@dataclass(frozen=True)
class PlannedSite:
    """An adapter of the result, before it is made.

    Args:
        tensor: its product in every adapter, with parameters.
        pairs: its matrices in every adapter, None where one lacks the site.
        weights: with which they are added; empty where their products are merged.
    """

    tensor: Planned
    pairs: tuple[Pair | None, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class AdapterPlan:
    """A merge of adapters, before it is done.

    Args:
        method: that merges.
        adapters: that are merged.
        sites: of the result.
        others: weights of tensors that were trained whole, by name.
        rank: the most that a site of the result has; None for the exact merge's.
    """

    method: Method
    adapters: tuple[Artifact, ...]
    sites: tuple[PlannedSite, ...]
    others: Mapping[str, tuple[float, ...]]
    rank: int | None

    @property
    def is_exact(self) -> bool:
        """Whether bottlenecks are put side by side."""
        return self.method.name in EXACT

    def rank_of(self, site: PlannedSite) -> int:
        """Of a site of the result."""
        if not self.is_exact:
            assert self.rank is not None
            return min(self.rank, *site.tensor.slices.shape)
        counted = [
            size
            for size, weight in zip(ranks_of(site.pairs), site.weights, strict=True)
            if size and weight != 0
        ]
        whole = sum(counted) or next(size for size in ranks_of(site.pairs) if size)
        return whole if self.rank is None else min(whole, self.rank)


def check_settings(config: MergeConfig, rank: int | None, seed: int | None) -> Method:
    """Refuse what has no meaning for adapters, before any is read.

    Args:
        config: that lists adapters.
        rank: asked for.
        seed: asked for.

    Returns:
        The method.

    Raises:
        ConfigError: a method or a key that adapters cannot be merged with; says which can.
    """
    method = method_named(config.method)
    if method.name not in (*EXACT, *BY_PRODUCT):
        raise ConfigError(
            f"merge_method {method.name} is for whole models: adapters merge by {', '.join(EXACT)}, and with "
            f"--rank by {', '.join(BY_PRODUCT)}"
        )
    if config.is_sliced:
        raise ConfigError("slices stack layers of whole models: list adapters under models")
    keys = {
        "dtype": config.dtype,
        "tokenizer_source": config.tokenizer_source,
        "chat_template": config.chat_template,
    }
    for key, value in keys.items():
        if value is not None:
            hint = ", whose numbers are float32 or of --bits" if key == "dtype" else ""
            raise ConfigError(f"{key} has no effect on adapters{hint}: leave it out")
    if config.base is not None and is_adapter_folder(config.base):
        raise ConfigError(f"base_model must be the model of the adapters, {config.base} is an adapter")
    if method.name not in EXACT and rank is None:
        raise ConfigError(
            f"merge_method {method.name} merges the products up @ down, which have a full rank then: give "
            f"--rank N; {' and '.join(EXACT)} need none"
        )
    if method.name not in DRAWING and seed is not None:
        raise ConfigError(f"--seed has no effect with {method.name}, which draws nothing: leave it out")
    return method


def plan_adapters(
    config: MergeConfig, adapters: Sequence[Artifact], rank: int | None = None, seed: int = 0
) -> AdapterPlan:
    """Say what every site of the result is made of.

    Args:
        config: what is asked for.
        adapters: in the order of `config`.
        rank: of the result.
        seed: of methods that draw.

    Returns:
        The plan.

    Raises:
        ConfigError: a parameter, or a rank, that cannot be.
        InputError: adapters that do not fit each other; both are named.
    """
    method = method_named(config.method)
    check_alike(adapters)
    _check_method(method, adapters)
    pairs = pairs_of(adapters)
    others = [whole_tensors(adapter) for adapter in adapters]
    check_whole_tensors(adapters, others)
    planned = _planned(config, method, pairs, others[0], seed)
    sites = tuple(
        PlannedSite(one, pairs[one.name], _weights(method, one.values, one.name))
        for one in planned
        if one.name in pairs
    )
    plan = AdapterPlan(method, tuple(adapters), sites, _whole_weights(method, planned, others[0]), rank)
    check_rank(adapters, rank, _possible(plan))
    return plan


def carry_out_adapters(plan: AdapterPlan, advance: Callable[[int], None] | None = None) -> MergedAdapter:
    """Merge adapters.

    Args:
        plan: what is merged.
        advance: told how many more sites are done.

    Returns:
        The merged adapter in memory, with 32-bit weights.

    Raises:
        InputError: a number is not finite.
    """
    surveyed = None
    if not plan.is_exact:
        surveyed = plan.method.survey([(one.tensor.slices, one.tensor.values) for one in plan.sites])
    sites = []
    for one in plan.sites:
        sites.append(_merged(plan, one, surveyed))
        if advance is not None:
            advance(1)
    whole = [whole_tensors(adapter) for adapter in plan.adapters]
    others = {
        name: weighted_mean([own[name] for own in whole], weights) for name, weights in plan.others.items()
    }
    return MergedAdapter(merged_manifest(plan.adapters, sites), tuple(sites), others)


def _merged(plan: AdapterPlan, one: PlannedSite, surveyed: object) -> MergedSite:
    if plan.is_exact:
        return add_side_by_side(one.tensor.name, one.pairs, one.weights, plan.rank)
    assert plan.rank is not None
    flat = merged_tensor(plan.method, one.tensor.slices, one.tensor.values, surveyed, torch.float32)
    return cut_to_rank(one.tensor.name, one.pairs, flat.view(one.tensor.slices.shape), plan.rank)


@dataclass(frozen=True)
class _Products:
    """An adapter as a model whose tensors are the products of its sites."""

    name: str
    entries: Mapping[str, Entry]
    products: Mapping[str, Product]

    def read(self, tensor: str, start: int, out: Tensor) -> None:
        """Numbers of a product; 0 where the adapter lacks the site."""
        if tensor not in self.products:
            out.zero_()
            return
        for place, numbers in self.products[tensor].numbers(start, len(out)):
            out[place : place + len(numbers)] = numbers


def _planned(
    config: MergeConfig,
    method: Method,
    pairs: Mapping[str, tuple[Pair | None, ...]],
    others: Mapping[str, Tensor],
    seed: int,
) -> tuple[Planned, ...]:
    """Let the planner of whole models find the parameters of each site, by depth and by name."""
    shapes: dict[str, tuple[int, ...]] = {site: shape_of(own) for site, own in pairs.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in others.items()}
    entries = {name: Entry(torch.float32, shape) for name, shape in shapes.items()}
    only = config.slices[0]
    # An adapter may be listed twice, with other weights.
    names = [_numbered(source.model, place, only.sources) for place, source in enumerate(only.sources)]
    sources = {name: _Products(name, entries, _products(pairs, place)) for place, name in enumerate(names)}
    renamed = tuple(
        SourceConfig(name, None, source.parameters) for name, source in zip(names, only.sources, strict=True)
    )
    base = ZERO if method.needs_base else None
    asked = replace(config, slices=(replace(only, sources=renamed),), base=base)
    models = {**sources, ZERO: _Products(ZERO, entries, {})}
    return plan_merge(asked, models, seed, Buffers()).tensors


def _numbered(model: str, place: int, sources: Sequence[SourceConfig]) -> str:
    return model if [source.model for source in sources].count(model) == 1 else f"{model} (the {place + 1}.)"


def _products(pairs: Mapping[str, tuple[Pair | None, ...]], place: int) -> dict[str, Product]:
    found = {}
    for site, own in pairs.items():
        pair = own[place]
        if pair is not None:
            found[site] = Product(pair.up.double() * pair.scale, pair.down.double())
    return found


def _weights(method: Method, values: Values, name: str) -> tuple[float, ...]:
    if method.name not in EXACT:
        return ()
    weights = values.of("weight")
    if values.whole["normalize"]:
        weights = normalized(weights, name)
    return tuple(weight * values.whole.get("lambda", 1.0) for weight in weights)


def _whole_weights(
    method: Method, planned: Sequence[Planned], others: Mapping[str, Tensor]
) -> dict[str, tuple[float, ...]]:
    """Heads have no base to differ from: they are averaged, by weight where the method has one."""
    weighs = any(one.name == "weight" for one in method.parameters)
    return {
        one.name: tuple(one.values.of("weight") if weighs else [1.0] * len(one.values.models))
        for one in planned
        if one.name in others
    }


def _possible(plan: AdapterPlan) -> int:
    if plan.is_exact:
        whole = replace(plan, rank=None)
        return max(whole.rank_of(site) for site in plan.sites)
    return max(min(site.tensor.slices.shape) for site in plan.sites)


def _check_method(method: Method, adapters: Sequence[Artifact]) -> None:
    kind = adapters[0].manifest.adapter.get("method", "lora")
    if method.name not in EXACT and kind != "lora":
        raise ConfigError(
            f"merge_method {method.name} merges products up @ down, and {adapters[0].folder} is {kind}, with "
            f"an activation in between: use {' or '.join(EXACT)}"
        )
