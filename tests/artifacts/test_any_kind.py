"""Tensors stay in their files until they are asked for, and other kinds than adapters are read."""

import numpy as np
import pytest

from petkit.artifacts.any_kind import FileTensors, read_other
from petkit.artifacts.dense import to_raw
from petkit.artifacts.tensor_file import serialize_tensor_file
from petkit.errors import ArtifactError


def write(folder, name, **tensors):
    (folder / name).write_bytes(serialize_tensor_file({key: to_raw(one) for key, one in tensors.items()}, {}))


def test_tensors_of_several_files(tmp_path):
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(3.0, dtype=np.float32)
    write(tmp_path, "1.safetensors", a=a)
    write(tmp_path, "2.safetensors", b=b)
    found = FileTensors(tmp_path, ["1.safetensors", "2.safetensors"])
    assert (sorted(found), len(found)) == (["a", "b"], 2)
    assert found["a"].shape == (2, 3)
    assert np.array_equal(found["a"].data.view(np.float32).reshape(2, 3), a)
    assert found["b"].data.tobytes() == b.tobytes()
    assert "c" not in found
    (tmp_path / "2.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="became shorter"):
        found["b"]


def test_what_is_no_other_kind(tmp_path):
    assert read_other(tmp_path) is None
    (tmp_path / "petkit.json").write_text('{"kind": "adapter"}')
    assert read_other(tmp_path) is None
