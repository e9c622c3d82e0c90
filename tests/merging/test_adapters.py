"""Adapters merged without their base: the same outputs, and the nearest of a smaller rank."""

from pathlib import Path

import numpy as np
import pytest
import torch

from petkit.artifacts import Artifact, Base, Manifest, Task
from petkit.artifacts.dense import to_raw
from petkit.errors import ConfigError, InputError
from petkit.merging.adapters import merge_adapters

SITES = ("blocks.0.q.lora", "blocks.1.q.lora")


def adapter(
    seed, rank=3, *, method="lora", sites=SITES, classes=("a", "b"), base="0" * 64, scaling=None, head=True
):
    source = torch.Generator().manual_seed(seed)
    tensors = {}
    if head:
        tensors["head.weight"] = torch.randn(2, 6, generator=source)
        tensors["head.bias"] = torch.randn(2, generator=source)
    for site in sites:
        tensors[f"{site}.down.weight"] = torch.randn(rank, 6, generator=source)
        tensors[f"{site}.up.weight"] = torch.randn(5, rank, generator=source)
    manifest = Manifest(
        base=Base(id="b", sha256=base),
        adapter={"method": method, "bits": 32, "scale": 0.5 * seed, "bottleneck": rank},
        task=Task(type="image_classification", classes=classes),
        scaling=scaling or {},
    )
    raw = {name: to_raw(one) for name, one in tensors.items()}
    return Artifact(Path(f"adapter-{seed}"), manifest, {}, raw)


def output(tensors, site, x, scale=1.0, activation=None):
    """What a site adds, in float64."""
    inner = x.double() @ tensors[f"{site}.down.weight"].double().T
    inner = inner if activation is None else activation(inner)
    return scale * inner @ tensors[f"{site}.up.weight"].double().T


def own_output(one, site, x, activation=None):
    return output(one.dense, site, x, one.manifest.scaling_of(site), activation)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("method", "activation"), [("lora", None), ("adaptformer", torch.relu)])
def test_side_by_side_is_the_sum_of_outputs(method, activation, seed):
    adapters = [adapter(seed + 1, 3, method=method), adapter(seed + 2, 4, method=method)]
    merged = merge_adapters(adapters, [0.7, -0.4])
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    for site in SITES:
        first, other = (own_output(one, site, x, activation) for one in adapters)
        found = own_output(merged, site, x, activation)
        torch.testing.assert_close(found, 0.7 * first - 0.4 * other, rtol=1e-5, atol=1e-5)
        assert merged.dense[f"{site}.down.weight"].shape == (7, 6)
    assert (merged.errors, merged.manifest.adapter["bottleneck"]) == ({}, 7)
    assert merged.manifest.scaling_of(SITES[0]) == 1


def test_scales_of_sites_and_sites_that_one_lacks():
    one = adapter(1, scaling={SITES[0]: 3.0, SITES[1]: 0.25})
    other = adapter(2, sites=SITES[:1])
    merged = merge_adapters([one, other], [1.0, 1.0])
    x = torch.randn(4, 6)
    assert torch.equal(own_output(merged, SITES[1], x), own_output(one, SITES[1], x))
    assert merged.manifest.scaling == {SITES[0]: 1.0, SITES[1]: 0.25}
    wanted = own_output(one, SITES[0], x) + own_output(other, SITES[0], x)
    torch.testing.assert_close(own_output(merged, SITES[0], x), wanted, rtol=1e-5, atol=1e-5)
    assert [site.ranks for site in merged.sites] == [(3, 3), (3, 0)]


def test_the_order_of_adapters_does_not_change_the_product():
    adapters, weights = [adapter(1, 3), adapter(2, 2), adapter(3, 1)], [0.5, 2.0, -1.0]
    x = torch.eye(6)
    for rank in (None, 4):
        one = merge_adapters(adapters, weights, rank)
        other = merge_adapters(adapters[::-1], weights[::-1], rank)
        for site in SITES:
            torch.testing.assert_close(
                own_output(one, site, x), own_output(other, site, x), rtol=1e-5, atol=1e-5
            )


def test_an_adapter_of_weight_0_takes_no_room():
    merged = merge_adapters([adapter(1, 3), adapter(2, 2)], [1.0, 0.0])
    assert merged.manifest.adapter["bottleneck"] == 3


def test_a_smaller_rank_is_the_nearest_one():
    adapters = [adapter(1, 3), adapter(2, 2)]
    exact = merge_adapters(adapters, [1.0, 1.0])
    merged = merge_adapters(adapters, [1.0, 1.0], rank=2)
    for site in SITES:
        product = own_output(exact, site, torch.eye(6)).T.numpy()
        u, s, v = np.linalg.svd(product)
        found = own_output(merged, site, torch.eye(6)).T.numpy()
        np.testing.assert_allclose(found, (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)
        # No matrix of this rank is nearer.
        assert np.linalg.norm(product - found) == pytest.approx(np.sqrt((s[2:] ** 2).sum()), abs=1e-5)
        assert merged.errors[site] == pytest.approx(np.sqrt((s[2:] ** 2).sum() / (s**2).sum()), abs=1e-6)


def test_a_rank_that_is_not_smaller_changes_nothing():
    adapters = [adapter(1, 3), adapter(2, 2)]
    assert merge_adapters(adapters, [1.0, 1.0], rank=5).errors == {}


def test_heads_are_averaged():
    adapters = [adapter(1), adapter(2)]
    merged = merge_adapters(adapters, [3.0, 1.0])
    wanted = 0.75 * adapters[0].dense["head.weight"] + 0.25 * adapters[1].dense["head.weight"]
    torch.testing.assert_close(merged.dense["head.weight"], wanted)


@pytest.mark.parametrize("scaling", [{}, {SITES[0]: 3.0, SITES[1]: 1 / 3}])
def test_one_adapter_at_weight_one_is_itself_bit_for_bit(scaling):
    one = adapter(2, scaling=scaling)
    merged = merge_adapters([one], [1.0])
    assert merged.dense.keys() == one.dense.keys()
    for name, tensor in merged.dense.items():
        assert tensor.numpy().tobytes() == one.dense[name].numpy().tobytes(), name
    assert (merged.manifest.scaling, merged.manifest.adapter) == (
        scaling,
        one.manifest.adapter | _scale(scaling),
    )


def _scale(scaling):
    return {"scale": 1.0} if scaling else {}


def test_targets_are_those_of_all():
    one, other = adapter(1), adapter(2)
    manifest = other.manifest.model_copy(
        update={"adapter": {**other.manifest.adapter, "targets": ["o", "q"]}}
    )
    merged = merge_adapters([one, Artifact(other.folder, manifest, {}, other.raw_dense)], [1.0, 1.0])
    assert merged.manifest.adapter["targets"] == ["q", "v", "o"]


def test_a_base_is_known_by_its_hash_or_else_by_its_name():
    one, other = adapter(1), adapter(2)
    named = other.manifest.model_copy(update={"base": Base(id="b")})
    merged = merge_adapters([Artifact(other.folder, named, {}, other.raw_dense), one], [1.0, 1.0])
    assert merged.manifest.base == one.manifest.base
    strange = other.manifest.model_copy(update={"base": Base(id="c")})
    with pytest.raises(InputError, match=r"same base, got b of sha256 0+ and c"):
        merge_adapters([one, Artifact(other.folder, strange, {}, other.raw_dense)], [1.0, 1.0])


@pytest.mark.parametrize("rank", [0, -1, 7])
def test_ranks_that_cannot_be(rank):
    with pytest.raises(
        ConfigError, match=f"rank must be from 1 to 6, which is the exact merge's, got {rank}"
    ):
        merge_adapters([adapter(1), adapter(2)], [1.0, 1.0], rank)


@pytest.mark.parametrize(
    ("others", "weights", "rank", "message"),
    [
        ([adapter(2, base="1" * 64)], [1, 1], None, "adapter-1 and adapter-2 must have the same base"),
        (
            [adapter(2, method="adaptformer")],
            [1, 1],
            None,
            "must have the same method, got lora and adaptformer",
        ),
        ([adapter(2, classes=("a", "c"))], [1, 1], None, "must have the same classes"),
        ([adapter(2)], [1, -1], None, "must not sum to 0"),
        ([adapter(2)], [1], None, "one for each of the 2 adapters, got 1"),
    ],
)
def test_adapters_that_do_not_fit_are_named(others, weights, rank, message):
    with pytest.raises((ConfigError, InputError)) as error:
        merge_adapters([adapter(1), *others], weights, rank)
    assert message in str(error.value)


def test_a_rank_for_an_activation_is_refused():
    with pytest.raises(ConfigError, match=r"rank is for LoRA: adapter-1 has an activation"):
        merge_adapters([adapter(1, method="adaptformer")], [1.0], rank=2)
