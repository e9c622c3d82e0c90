import hashlib

import numpy as np
import pytest
import torch

from petkit.artifacts import file_sha256, state_dict_sha256, step
from petkit.errors import InputError


def by_hand(*entries):
    return hashlib.sha256(b"".join(line.encode() + data for line, data in entries)).hexdigest()


def test_hash_is_the_one_on_the_page():
    state = {
        "b": torch.tensor([[1.0, -2.0]]),
        "a": torch.tensor(7),
        "c.x": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    assert state_dict_sha256(state) == by_hand(
        ("a I64 \n", (7).to_bytes(8, "little")),
        ("b F32 1x2\n", np.array([1, -2], "<f4").tobytes()),
        ("c.x BF16 1\n", bytes.fromhex("c03f")),
    )


def test_hash_sees_names_shapes_dtypes_values_and_not_the_order_or_strides():
    weight = torch.arange(6.0).reshape(2, 3)
    one = state_dict_sha256({"a": weight, "b": weight})
    assert one == state_dict_sha256({"b": weight.t().contiguous().t(), "a": weight.clone()})
    others = [weight.reshape(3, 2), weight.double(), weight + 1e-6]
    assert len({one, *(state_dict_sha256({"a": weight, "b": other}) for other in others)}) == 4
    assert state_dict_sha256({"a": weight}) != state_dict_sha256({"c": weight})


def test_step_hashes_config_and_files(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"abc")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    made = step("train adapter", {"seed": 0}, {"x": tmp_path / "x", "base": "f" * 64})
    assert made.inputs == {"x": hashlib.sha256(b"abc").hexdigest(), "base": "f" * 64}
    assert made.config_sha256 == hashlib.sha256(b"seed: 0\n").hexdigest()
    assert made.created == "1970-01-01T00:00:00Z"
    assert step("quantize").config_sha256 is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none: No such file"):
        file_sha256(tmp_path / "none")
