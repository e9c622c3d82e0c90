"""mergekit's YAML over adapters: weights of each site, methods on products, and what is refused."""

import numpy as np
import pytest
import torch

from petkit.errors import ConfigError
from petkit.merging.adapter_plan import (
    BY_PRODUCT,
    EXACT,
    carry_out_adapters,
    check_settings,
    plan_adapters,
)
from petkit.merging.config import read_merge_config
from petkit.merging.registry import METHODS
from petkit.merging.state_dicts import merge_state_dicts
from tests.merging.peft_adapters import write_yaml
from tests.merging.test_adapters import SITES, adapter


def asked(tmp_path, method, owns, count=2, **keys):
    models = [(f"adapter-{i + 1}", own) for i, own in enumerate(owns[:count])]
    return read_merge_config(write_yaml(tmp_path / "c.yml", method, models, **keys))


def product(tensors, site, scale):
    up, down = (tensors[f"{site}.{part}.weight"].double().numpy() for part in ("up", "down"))
    return scale * up @ down


def products(merged):
    return {site: product(merged.dense, site, merged.manifest.scaling_of(site)) for site in SITES}


def merge(tmp_path, method, owns, adapters=None, rank=None, seed=0, **keys):
    adapters = adapters or [adapter(1), adapter(2, 4)]
    config = asked(tmp_path, method, owns, len(adapters), **keys)
    return carry_out_adapters(plan_adapters(config, adapters, rank, seed))


def summed(weights, adapters=None):
    adapters = adapters or [adapter(1), adapter(2, 4)]
    found = {}
    for site in SITES:
        own = [products(one)[site] for one in adapters]
        found[site] = sum(weight * one for weight, one in zip(weights, own, strict=True))
    return found


def assert_products(merged, wanted):
    found = products(merged)
    for site in SITES:
        np.testing.assert_allclose(found[site], wanted[site], rtol=1e-5, atol=1e-5)


def test_linear_divides_by_the_sum_of_weights(tmp_path):
    merged = merge(tmp_path, "linear", [{"weight": 3}, {"weight": 1}])
    assert_products(merged, summed([0.75, 0.25]))
    merged = merge(tmp_path, "linear", [{"weight": 3}, {"weight": 1}], parameters={"normalize": False})
    assert_products(merged, summed([3, 1]))


def test_task_arithmetic_sums_and_needs_no_base(tmp_path):
    merged = merge(tmp_path, "task_arithmetic", [{"weight": 3}, {"weight": -1}], parameters={"lambda": 0.5})
    assert_products(merged, summed([1.5, -0.5]))
    heads = [one.dense["head.weight"].double() for one in (adapter(1), adapter(2, 4))]
    wanted = 1.5 * heads[0] - 0.5 * heads[1]
    torch.testing.assert_close(merged.dense["head.weight"].double(), wanted, rtol=1e-6, atol=1e-6)


def test_weights_may_differ_by_layer_and_by_name(tmp_path):
    keys = {"parameters": {"normalize": False}}
    merged = merge(tmp_path, "linear", [{"weight": [1, 3]}, {"weight": 1}], **keys)
    wanted = {SITES[0]: summed([1, 1])[SITES[0]], SITES[1]: summed([3, 1])[SITES[1]]}
    assert_products(merged, wanted)
    named = [{"filter": "blocks.1", "value": 0.0}, {"value": 2.0}]
    merged = merge(tmp_path, "linear", [{"weight": named}, {"weight": 1}], **keys)
    assert_products(merged, {SITES[0]: summed([2, 1])[SITES[0]], SITES[1]: summed([0, 1])[SITES[1]]})
    assert [len(site.pair.down) for site in merged.sites] == [7, 4]


def test_an_adapter_may_be_listed_twice(tmp_path):
    one = adapter(1)
    path = write_yaml(
        tmp_path / "c.yml", "task_arithmetic", [("adapter-1", {"weight": 1}), ("adapter-1", {"weight": 2})]
    )
    plan = plan_adapters(read_merge_config(path), [one, one])
    assert_products(carry_out_adapters(plan), summed([3], [one]))


@pytest.mark.parametrize("method", BY_PRODUCT)
def test_other_methods_merge_the_products(tmp_path, method):
    adapters = [adapter(1), adapter(2, 4)]
    kind = next(one for one in METHODS if one.name == method)
    own = {"weight": 0.7, "density": 0.5} if "density" in [one.name for one in kind.parameters] else {}
    deltas = [{site: torch.tensor(one).float() for site, one in products(each).items()} for each in adapters]
    base = {site: torch.zeros(5, 6) for site in SITES}
    weights = [own["weight"]] * 2 if own else None
    more = {"density": 0.5} if own else {}
    wanted = merge_state_dicts(method, deltas, base, weights, seed=3, **more)
    # At full rank nothing is lost.
    merged = merge(tmp_path, method, [own, own], adapters, rank=5, seed=3)
    assert_products(merged, {site: one.numpy() for site, one in wanted.items()})
    smaller = merge(tmp_path, method, [own, own], adapters, rank=2, seed=3)
    for site in smaller.sites:
        values = np.linalg.svd(wanted[site.name].double().numpy())[1]
        bound = np.sqrt((values[2:] ** 2).sum() / (values**2).sum())
        assert site.error == pytest.approx(bound, abs=1e-6)
        assert len(site.pair.down) == 2


def test_one_adapter_of_other_scale_and_sites_counts_as_0_where_it_is_not(tmp_path):
    other = adapter(2, 4, sites=SITES[:1], scaling={SITES[0]: 0.1})
    merged = merge(
        tmp_path,
        "ties",
        [{"weight": 1, "density": 1}] * 2,
        [adapter(1), other],
        5,
        parameters={"normalize": False},
    )
    np.testing.assert_allclose(
        products(merged)[SITES[1]], products(adapter(1))[SITES[1]], rtol=1e-4, atol=1e-5
    )


def test_every_method_is_said_to_work_or_not():
    assert {one.name for one in METHODS} - {*EXACT, *BY_PRODUCT} == {"slerp", "passthrough"}


@pytest.mark.parametrize(
    ("method", "keys", "rank", "seed", "message"),
    [
        (
            "slerp",
            {},
            None,
            None,
            "slerp is for whole models: adapters merge by linear, task_arithmetic",
        ),
        ("linar", {}, None, None, "did you mean linear?"),
        ("ties", {}, None, None, "give --rank N; linear and task_arithmetic need none"),
        ("linear", {"dtype": "float16"}, None, None, "dtype has no effect on adapters, whose numbers are"),
        ("linear", {"tokenizer_source": "base"}, None, None, "tokenizer_source has no effect on adapters"),
        ("linear", {"chat_template": "x"}, None, None, "chat_template has no effect on adapters"),
        ("linear", {}, None, 3, "--seed has no effect with linear, which draws nothing"),
        ("ties", {}, 2, 0, "--seed has no effect with ties"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path, method, keys, rank, seed, message):
    with pytest.raises(ConfigError) as error:
        check_settings(asked(tmp_path, method, [{}, {}], **keys), rank, seed)
    assert message in str(error.value)


def test_slices_are_for_whole_models(tmp_path):
    path = tmp_path / "s.yml"
    path.write_text("merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n")
    with pytest.raises(ConfigError, match="list adapters under models"):
        check_settings(read_merge_config(path), None, None)
    assert check_settings(asked(tmp_path, "dare_ties", [{}, {}]), 2, 5).name == "dare_ties"


@pytest.mark.parametrize(
    ("method", "parameters", "rank", "message"),
    [
        ("linear", [{"weight": 1}, {"weight": -1}], None, "must not sum to 0 to be normalised, got 1, -1"),
        ("linear", [{}, {"weight": 1}], None, "weight of adapter-1 for"),
        ("linear", [{"wieght": 1}, {"weight": 1}], None, "did you mean weight?"),
        ("linear", [{"weight": 1}, {"weight": 1}], 8, "rank must be from 1 to 7, which is the exact merge's"),
        ("ties", [{"weight": 1}, {"weight": 1}], 6, "rank must be from 1 to 5"),
        ("ties", [{"weight": 1, "density": 2}, {"weight": 1}], 2, "must be from 0 to 1, got 2"),
        ("task_arithmetic", [{"weight": 1}, {"weight": -1}], None, "must not sum to 0, since heads"),
    ],
)
def test_parameters_that_cannot_be(tmp_path, method, parameters, rank, message):
    with pytest.raises(ConfigError) as error:
        merge(tmp_path, method, parameters, rank=rank)
    assert message in str(error.value)


def test_an_activation_has_no_product(tmp_path):
    with pytest.raises(ConfigError, match="adapter-1 is adaptformer, with an activation in between"):
        merge(tmp_path, "ties", [{"weight": 1}], [adapter(1, method="adaptformer")], rank=2)
