"""What a merge of adapters is held to when it is read back."""

from pathlib import Path

import pytest
import torch

from petkit.artifacts import Artifact
from petkit.artifacts.dense import to_raw
from petkit.merging.adapter_checks import adapter_checks, bits_errors, rank_error
from petkit.merging.adapter_plan import carry_out_adapters, plan_adapters
from petkit.merging.config import read_merge_config
from petkit.quantization.nearest import nearest
from tests.merging.peft_adapters import write_yaml
from tests.merging.test_adapters import SITES, adapter


def merged(tmp_path, weights, adapters, method="task_arithmetic", rank=None):
    models = [(f"adapter-{i}", {"weight": weight}) for i, weight in enumerate(weights)]
    config = read_merge_config(write_yaml(tmp_path / "c.yml", method, models))
    plan = plan_adapters(config, adapters, rank)
    return plan, carry_out_adapters(plan)


def written(one, **changes):
    dense = {**one.dense, **changes}
    return Artifact(Path("out"), one.manifest, {}, {name: to_raw(tensor) for name, tensor in dense.items()})


def outcome(plan, one, reread):
    return {check.name: check.ok for check in adapter_checks(plan, one, reread)}


@pytest.mark.parametrize("method", ["lora", "adaptformer"])
def test_a_sound_merge(tmp_path, method):
    plan, one = merged(tmp_path, [1.0, 0.5], [adapter(1, method=method), adapter(2, method=method)])
    assert outcome(plan, one, written(one)) == {
        "reload": True,
        "outputs": True,
        "differs from its base": True,
    }


def test_one_adapter_of_weight_1_equals_its_input(tmp_path):
    plan, one = merged(tmp_path, [1.0], [adapter(2, scaling={SITES[0]: 1 / 3, SITES[1]: 7.0})])
    assert outcome(plan, one, written(one))["equals its only input"] is True
    name = f"{SITES[0]}.up.weight"
    zero = one.dense[name].clone()
    zero[0, 0] = -zero[0, 0]
    found = outcome(plan, one, written(one, **{name: zero}))
    assert (found["equals its only input"], found["reload"], found["outputs"]) == (False, False, False)
    plan, one = merged(tmp_path, [2.0], [adapter(2)])
    assert "equals its only input" not in outcome(plan, one, written(one))


def test_weights_that_cancel_change_nothing(tmp_path):
    same = adapter(1, head=False), adapter(1, head=False)
    plan, one = merged(tmp_path, [0.3, -0.3], same)
    checks = adapter_checks(plan, one, written(one))
    assert not checks[-1].ok
    assert checks[-1].detail == (
        "0 of 2 adapters change the base: the weights cancel out, or what was merged is 0"
    )
    plan, one = merged(tmp_path, [0.3, -0.2999], same)
    assert adapter_checks(plan, one, written(one))[-1].ok


def test_zeros_change_nothing(tmp_path):
    plan, one = merged(tmp_path, [0.0, 0.0], [adapter(1, head=False), adapter(2, head=False)])
    assert not adapter_checks(plan, one, written(one))[-1].ok


def test_errors_of_bits_and_of_a_rank(tmp_path):
    plan, one = merged(tmp_path, [1.0, 0.5], [adapter(1), adapter(2)], rank=2)
    packed, dense, wanted, norms, lost = {}, {}, {}, 0.0, 0.0
    for name, tensor in one.dense.items():
        if name.startswith("head"):
            dense[name] = to_raw(tensor)
        else:
            packed[name.removesuffix(".weight")] = nearest(tensor, 4)
    reread = Artifact(Path("out"), one.manifest, packed, dense)
    for site in one.sites:
        pair = site.pair
        own = pair.scale * pair.up.double() @ pair.down.double()
        parts = (torch.tensor(packed[f"{site.name}.{part}"].dequantize()).double() for part in ("up", "down"))
        up, down = parts
        change = own - pair.scale * up @ down
        wanted[site.name] = float(change.norm() / own.norm())
        norms, lost = norms + float(own.norm()) ** 2, lost + float(change.norm()) ** 2
    found, total = bits_errors(one, reread)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert total == pytest.approx((lost / norms) ** 0.5, rel=1e-5)
    squares = [(site.lost**2, site.norm**2) for site in one.sites]
    assert rank_error(one) == pytest.approx((sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5)
    assert set(outcome(plan, one, reread)) == {"differs from its base"}
