import numpy as np
import pytest

from petkit.artifacts import PackedMatrix, comparison, read_artifact
from petkit.artifacts.comparison import ABSENT, compare
from petkit.artifacts.dense import to_raw
from tests.artifacts.support import adapter_matrices, head, manifest, write_small

SITES = {"s": (4, 2, 4)}


def differences(tmp_path, **changes):
    common = {"packed": adapter_matrices(SITES, 1), "dense": head()}
    first = write_small(tmp_path / "a", **common)
    second = write_small(tmp_path / "b", **{**common, **changes})
    return {
        (one.where, one.name): (one.first, one.second, one.change)
        for one in compare(read_artifact(first), read_artifact(second))
        if one.name != "tensors_sha256"
    }


def test_an_artifact_equals_itself(tmp_path):
    assert differences(tmp_path) == {}


def test_flipped_bits_are_counted(tmp_path):
    packed = adapter_matrices(SITES, 1)
    old = packed["s.down"]
    codes = old.codes()
    codes[0, :3] ^= 1
    packed["s.down"] = PackedMatrix.from_codes(codes, old.shift, 0.5, 1)
    found = differences(tmp_path, packed=packed)
    form = {"shape": [2, 4], "bits": 1, "kind": "normal_l1"}
    scale = [float(np.float32(old.scale)), 0.5]
    change = {"flipped_bits": 3, "changed_codes": 3, "codes": 8, "scale": scale}
    assert found["tensors", "s.down"] == (form, form, change)


def test_other_widths_missing_tensors_and_dense_values(tmp_path):
    dense = head()
    dense["head.bias"] = dense["head.bias"] + np.float32([0, 1])
    dense["extra"] = np.ones(3, np.float32)
    found = differences(tmp_path, packed=adapter_matrices(SITES, 2), dense=dense, manifest=manifest(bits=2))
    assert found["petkit.json", "adapter.bits"] == (1, 2, {})
    assert found["tensors", "s.up"] == (
        {"shape": [4, 2], "bits": 1, "kind": "normal_l1"},
        {"shape": [4, 2], "bits": 2, "kind": "normal_l1"},
        {},
    )
    assert found["tensors", "extra"] == (ABSENT, {"shape": [3], "dtype": "F32"}, {})
    change = found["tensors", "head.bias"][2]
    # float32 rounds the sum by half a unit in the last place of 1 at most.
    assert change.pop("largest_difference") == pytest.approx(1, abs=2**-24)
    assert change == {"changed_values": 1, "values": 2}
    assert ("tensors", "head.weight") not in found


def test_configurations_are_compared_key_by_key(tmp_path):
    found = differences(tmp_path, config={"output": "runs/x", "adapter": {"bits": 1.0}, "seed": 1})
    assert found == {
        ("config.yaml", "adapter.bits"): (1, 1.0, {}),
        ("config.yaml", "seed"): (ABSENT, 1, {}),
    }


def test_a_payload_tells_null_from_nothing(tmp_path):
    common = {"packed": adapter_matrices(SITES, 1), "dense": head()}
    first = write_small(tmp_path / "a", **common, config={"x": None})
    second = write_small(tmp_path / "b", **common, config={"y": [1]})
    assert [one.payload() for one in compare(read_artifact(first), read_artifact(second))] == [
        {"where": "config.yaml", "name": "x", "first": None},
        {"where": "config.yaml", "name": "y", "second": [1]},
    ]


def test_large_tensors_are_compared_in_parts(monkeypatch):
    generator = np.random.default_rng(0)
    one = generator.standard_normal((7, 5)).astype(np.float32)
    other = one.copy()
    other[3, 1:4] += 0.5
    monkeypatch.setattr(comparison, "BLOCK", 4)
    change = comparison._dense_change(to_raw(one), to_raw(other))
    assert change == {
        "changed_values": 3,
        "values": 35,
        "largest_difference": float(np.abs(one.astype(np.float64) - other).max()),
    }
    assert comparison._dense_change(to_raw(one), to_raw(one.copy())) == {}
