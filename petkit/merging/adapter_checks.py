"""What a merge of adapters is held to when it is read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from petkit.artifacts import Artifact, Check
from petkit.merging.adapter_plan import AdapterPlan, PlannedSite
from petkit.merging.adapters import MergedAdapter, MergedSite, matrices_of, pairs_of, whole_tensors
from petkit.merging.low_rank import Pair, distance

# A change smaller than this share of what was merged is the rounding of float32, 6e-8, and not a change.
NOTHING = 1e-6
# Weights in `up` are rounded to float32, and outputs are sums of as many products as there are ranks.
TOLERANCE = 1e-5
INPUTS = 16


def adapter_checks(plan: AdapterPlan, merged: MergedAdapter, reread: Artifact) -> list[Check]:
    """Look at a merge as it was written.

    Args:
        plan: what was merged.
        merged: in memory, with 32-bit weights.
        reread: the artifact, read back; of any bits.

    Returns:
        Whether it is what was in memory (32 bits), computes what its inputs compute (exact merges of 32
        bits), is its only input where it must be, and changes its base.
    """
    is_whole = not reread.packed
    checks = [_reload(merged.dense, reread)] if is_whole else []
    if is_whole and plan.is_exact and not merged.errors:
        checks.append(_same_outputs(plan, reread))
        if len(plan.adapters) == 1 and all(one.weights == (1.0,) for one in plan.sites):
            checks.append(_same_adapter(plan.adapters[0], reread))
    return [*checks, _differs(merged.sites)]


def bits_errors(merged: MergedAdapter, reread: Artifact) -> tuple[dict[str, float], float]:
    """What fewer bits lost of each site's product, as a share of its norm, and of all of them.

    Args:
        merged: in memory, with 32-bit weights.
        reread: the quantised artifact.
    """
    read = {name: own[0] for name, own in pairs_of([reread]).items()}
    lost, whole = {}, {}
    for site in merged.sites:
        pair = read[site.name]
        assert pair is not None
        lost[site.name], whole[site.name] = distance(site.pair, pair), norm_of(site)
    shares = {name: share(one, whole[name]) for name, one in lost.items()}
    return shares, share(total(lost.values()), total(whole.values()))


def rank_error(merged: MergedAdapter) -> float:
    """What a smaller rank lost of all sites, as a share of their norm."""
    return share(total(one.lost for one in merged.sites), total(one.norm for one in merged.sites))


def norm_of(site: MergedSite) -> float:
    """Of the product that was kept: the rest is at right angles to it."""
    return float(max(0.0, site.norm**2 - site.lost**2) ** 0.5)


def total(norms: Iterable[float]) -> float:
    """Norm of parts by the norms of each."""
    return float(sum(one * one for one in norms) ** 0.5)


def share(part: float, whole: float) -> float:
    """A part of a norm; 0 of nothing."""
    return part / whole if whole > 0 else 0.0


def _reload(dense: Mapping[str, Tensor], reread: Artifact) -> Check:
    differing = [
        name
        for name, tensor in dense.items()
        if name not in reread.dense or not _is_equal(tensor, reread.dense[name])
    ]
    detail = f"{len(dense)} tensors equal bit for bit after reading back"
    if differing:
        detail = f"{len(differing)} of {len(dense)} tensors differ after reading back, first {differing[0]}"
    return Check("reload", not differing, detail)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: -0 is not 0."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _same_outputs(plan: AdapterPlan, reread: Artifact) -> Check:
    """Compare, on the same inputs, what each site adds with the weighted sum of what its inputs add."""
    read = pairs_of([reread])
    activation = plan.adapters[0].manifest.adapter.get("method", "lora") != "lora"
    source = torch.Generator().manual_seed(0)
    worst = 0.0
    for one in plan.sites:
        columns = one.tensor.slices.shape[1]
        inputs = torch.randn(INPUTS, columns, dtype=torch.float64, generator=source)
        terms = list(_terms(one, inputs, activation))
        found = _outputs(read[one.tensor.name][0], inputs, activation)
        scale = sum(float(term.norm()) for term in terms)
        worst = max(worst, share(float((sum(terms) - found).norm()), scale))
    detail = f"{len(plan.sites)} sites add the weighted sum of their inputs, largest difference {worst:.1e}"
    return Check("outputs", worst <= TOLERANCE, detail)


def _terms(one: PlannedSite, inputs: Tensor, activation: bool) -> Iterator[Tensor]:
    for pair, weight in zip(one.pairs, one.weights, strict=True):
        if pair is not None:
            yield weight * _outputs(pair, inputs, activation)


def _outputs(pair: Pair | None, inputs: Tensor, activation: bool) -> Tensor:
    assert pair is not None
    hidden = inputs @ pair.down.double().T
    return pair.scale * (hidden.relu() if activation else hidden) @ pair.up.double().T


def _same_adapter(only: Artifact, reread: Artifact) -> Check:
    """One adapter at weight 1 is itself: every matrix and every factor, bit for bit."""
    own, found = matrices_of(only) | whole_tensors(only), matrices_of(reread) | whole_tensors(reread)
    differing = sorted(own.keys() ^ found.keys())
    differing += [name for name in own.keys() & found.keys() if not _is_equal(own[name], found[name])]
    sites = [name.removesuffix(".down") for name in own if name.endswith(".down")]
    differing += [one for one in sites if only.manifest.scaling_of(one) != reread.manifest.scaling_of(one)]
    detail = f"{len(own)} tensors and {len(sites)} factors are those of {only.folder}, bit for bit"
    if differing:
        detail = f"{len(differing)} of them differ from {only.folder}, first {differing[0]}"
    return Check("equals its only input", not differing, detail)


def _differs(sites: Sequence[MergedSite]) -> Check:
    changed = sum(one.norm > NOTHING * one.inputs for one in sites)
    detail = f"{changed} of {len(sites)} adapters change the base"
    if not changed:
        detail += ": the weights cancel out, or what was merged is 0"
    return Check("differs from its base", changed > 0, detail)
