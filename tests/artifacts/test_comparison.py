import numpy as np

from petkit.artifacts import PackedMatrix, read_artifact
from petkit.artifacts.comparison import compare
from tests.artifacts.support import adapter_matrices, head, manifest, write_small

SITES = {"s": (4, 2, 4)}


def differences(tmp_path, **changes):
    common = {"packed": adapter_matrices(SITES, 1), "dense": head()}
    first = write_small(tmp_path / "a", **common)
    second = write_small(tmp_path / "b", **{**common, **changes})
    return {
        (one.where, one.name): (one.first, one.second, one.detail)
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
    detail = found["tensors", "s.down"][2]
    assert detail == "3 bits flipped, 3 of 8 codes (37.50%); scale 0.03 -> 0.5"


def test_other_widths_missing_tensors_and_dense_values(tmp_path):
    dense = head()
    dense["head.bias"] = dense["head.bias"] + np.float32([0, 1])
    dense["extra"] = np.ones(3, np.float32)
    found = differences(tmp_path, packed=adapter_matrices(SITES, 2), dense=dense, manifest=manifest(bits=2))
    assert found["petkit.json", "adapter.bits"] == ("1", "2", "")
    assert found["tensors", "s.up"] == ("4x2, 1 bits, normal_l1", "4x2, 2 bits, normal_l1", "")
    assert found["tensors", "extra"] == ("-", "3, F32", "")
    assert found["tensors", "head.bias"][2] == "1 of 2 values differ, by at most 1"
    assert ("tensors", "head.weight") not in found


def test_configurations_are_compared_key_by_key(tmp_path):
    found = differences(tmp_path, config={"output": "runs/x", "adapter": {"bits": 1.0}, "seed": 1})
    assert found == {
        ("config.yaml", "adapter.bits"): ("1", "1.0", ""),
        ("config.yaml", "seed"): ("-", "1", ""),
    }
