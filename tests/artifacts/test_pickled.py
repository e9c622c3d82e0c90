import pickle

import numpy as np
import pytest
import torch

from petkit.artifacts.dense import to_float32
from petkit.artifacts.pickled import read_pickled_tensors
from petkit.errors import InputError


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.slow
def test_a_state_dict_is_read(tmp_path):
    shared = torch.arange(4.0)
    torch.save({"a": shared, "b": shared[1:3], "c": shared.to(torch.bfloat16)}, tmp_path / "x.bin")
    tensors = read_pickled_tensors(tmp_path / "x.bin")
    assert np.array_equal(to_float32(tensors["b"]), [1.0, 2.0])
    assert tensors["c"].dtype == "BF16"


@pytest.mark.slow
def test_code_in_a_pickle_does_not_run(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": Bomb(str(tmp_path / "ran"))}, 2))
    with pytest.raises(InputError, match="cannot be read as a dict of tensors"):
        read_pickled_tensors(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_what_is_no_dict_of_tensors_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "x.bin")
    with pytest.raises(InputError, match="it is not a dict of tensors"):
        read_pickled_tensors(tmp_path / "x.bin")


def test_a_child_that_hangs_is_stopped(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"took longer than 0\.01 s and was stopped"):
        read_pickled_tensors(tmp_path / "x.bin", seconds=0.01)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="is missing or not a file"):
        read_pickled_tensors(tmp_path / "none.bin")
