"""Adapters merged without their base: the same outputs, and the nearest of a smaller rank."""

from pathlib import Path

import numpy as np
import pytest
import torch

from petkit.artifacts import Artifact, Base, Manifest, Task
from petkit.artifacts.dense import to_raw
from petkit.errors import ConfigError, InputError
from petkit.merging.adapters import merge_adapters, of_rank, side_by_side

SITES = ("blocks.0.q.lora", "blocks.1.q.lora")


def adapter(seed, rank=3, *, method="lora", sites=SITES, classes=("a", "b"), base="0" * 64, scaling=None):
    source = torch.Generator().manual_seed(seed)
    tensors = {
        "head.weight": torch.randn(2, 6, generator=source),
        "head.bias": torch.randn(2, generator=source),
    }
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
    inner = x @ tensors[f"{site}.down.weight"].T
    inner = inner if activation is None else activation(inner)
    return scale * inner @ tensors[f"{site}.up.weight"].T


@pytest.mark.parametrize(("method", "activation"), [("lora", None), ("adaptformer", torch.relu)])
def test_side_by_side_is_the_sum_of_outputs(method, activation):
    adapters = [adapter(1, 3, method=method), adapter(2, 4, method=method)]
    merged = merge_adapters(adapters, [0.7, -0.4])
    x = torch.randn(8, 6)
    for site in SITES:
        wanted = sum(
            weight * output(one.dense, site, x, one.manifest.scaling_of(site), activation)
            for one, weight in zip(adapters, (0.7, -0.4), strict=True)
        )
        torch.testing.assert_close(output(merged.dense, site, x, activation=activation), wanted)
        assert merged.dense[f"{site}.down.weight"].shape == (7, 6)
    assert (merged.errors, merged.manifest.adapter["bottleneck"]) == ({}, 7)
    assert merged.manifest.scaling_of(SITES[0]) == 1


def test_scales_of_sites_and_sites_that_one_lacks():
    one = adapter(1, scaling={SITES[0]: 3.0, SITES[1]: 0.25})
    other = adapter(2, sites=SITES[:1])
    merged = merge_adapters([one, other], [1.0, 1.0])
    x = torch.randn(4, 6)
    torch.testing.assert_close(output(merged.dense, SITES[1], x), output(one.dense, SITES[1], x, 0.25))
    wanted = output(one.dense, SITES[0], x, 3.0) + output(other.dense, SITES[0], x, 1.0)
    torch.testing.assert_close(output(merged.dense, SITES[0], x), wanted)


def test_a_smaller_rank_is_the_nearest_one():
    adapters = [adapter(1, 3), adapter(2, 2)]
    exact = merge_adapters(adapters, [1.0, 1.0])
    merged = merge_adapters(adapters, [1.0, 1.0], rank=2)
    for site in SITES:
        product = (exact.dense[f"{site}.up.weight"] @ exact.dense[f"{site}.down.weight"]).double().numpy()
        u, s, v = np.linalg.svd(product)
        found = merged.dense[f"{site}.up.weight"] @ merged.dense[f"{site}.down.weight"]
        np.testing.assert_allclose(found.numpy(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)
        assert merged.errors[site] == pytest.approx(np.sqrt((s[2:] ** 2).sum() / (s**2).sum()), abs=1e-6)


def test_a_rank_that_is_not_smaller_changes_nothing():
    adapters = [adapter(1, 3), adapter(2, 2)]
    assert merge_adapters(adapters, [1.0, 1.0], rank=5).errors == {}


def test_of_rank_of_nothing():
    down, up, lost = of_rank(torch.zeros(3, 4), torch.zeros(5, 3), 2)
    assert (lost, down.shape, up.shape) == (0.0, (2, 4), (5, 2))


def test_heads_are_averaged():
    adapters = [adapter(1), adapter(2)]
    merged = merge_adapters(adapters, [3.0, 1.0])
    wanted = 0.75 * adapters[0].dense["head.weight"] + 0.25 * adapters[1].dense["head.weight"]
    torch.testing.assert_close(merged.dense["head.weight"], wanted)


def test_one_adapter_at_weight_one_gives_its_outputs():
    one = adapter(2)
    merged = merge_adapters([one], [1.0])
    x = torch.randn(3, 6)
    assert torch.equal(output(merged.dense, SITES[0], x), output(one.dense, SITES[0], x, 1.0))
    assert torch.equal(merged.dense["head.bias"], one.dense["head.bias"])


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


def test_side_by_side_of_one():
    down, up = torch.randn(2, 3), torch.randn(4, 2)
    from petkit.merging.adapters import Part

    found = side_by_side([Part(down, up, 2.0)])
    assert torch.equal(found[0], down)
    assert torch.equal(found[1], 2 * up)
