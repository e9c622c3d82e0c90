"""What a merge will take: the order of magnitude, for every method, and for models too large to read here."""

import json
import struct
from contextlib import ExitStack

import pytest

from petkit.errors import PetkitError
from petkit.merging import estimate as module
from petkit.merging.config import read_merge_config
from petkit.merging.estimate import estimate
from petkit.merging.folders import open_merge
from petkit.merging.registry import METHODS

GIGABYTE = 10**9


@pytest.fixture(autouse=True)
def small_trials(monkeypatch):
    monkeypatch.setattr(module, "SIDES", (32, 64))
    monkeypatch.setattr(module, "WRITTEN", 1 << 16)


@pytest.fixture
def planned(tmp_path):
    """Plans a merge of files that hold nothing: each model has `layers` matrices of 4096 by 11008."""
    stack = ExitStack()

    def run(method="linear", layers=1, parameters="{}"):
        shapes = {f"layers.{i}.w": (4096, 11008) for i in range(layers)}
        for name in ("base", "a", "b"):
            sparse(tmp_path / name, shapes)
        path = tmp_path / "m.yml"
        own = "{model: @/a}" if method in ("slerp", "passthrough") else "{model: @/a}, {model: @/b}"
        text = f"merge_method: {method}\nbase_model: @/base\nparameters: {parameters}\nmodels: [{own}]\n"
        path.write_text(text.replace("@", str(tmp_path)))
        return open_merge(read_merge_config(path), 0, stack).plan

    with stack:
        yield run


def sparse(folder, shapes):
    folder.mkdir(exist_ok=True)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_is_estimated(planned, tmp_path, method):
    needed = {one.name: 0.5 for one in method.parameters if one.default is None}
    parameters = json.dumps(needed)
    found = estimate(planned(method.name, parameters=parameters), tmp_path / "out")
    assert 0 < found.seconds < float("inf")
    assert found.seconds >= max(found.arithmetic, found.reading)
    assert 10**8 < found.peak_bytes < 40 * GIGABYTE
    assert not (tmp_path / "out").exists()


def test_14_gigabytes_a_model(planned, tmp_path):
    few, many = (estimate(planned("ties", layers, "{weight: 1}"), tmp_path / "out") for layers in (2, 150))
    # Memory does not grow with the models.
    assert abs(many.peak_bytes - few.peak_bytes) < 0.1 * few.peak_bytes
    assert many.arithmetic > 20 * few.arithmetic


def test_methods_on_whole_tensors_need_their_memory(planned, tmp_path):
    pieces = estimate(planned("ties", 1, "{weight: 1}"), tmp_path / "out")
    whole = estimate(planned("tsv", 1, "{}"), tmp_path / "out")
    assert whole.peak_bytes > pieces.peak_bytes + 3 * 4 * 4096 * 11008


def test_a_disk_that_cannot_be_written(planned, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("petkit.merging.estimate.os.fsync", full)
    with pytest.raises(PetkitError, match="No space left on device"):
        estimate(planned("linear", 1, "{weight: 1}"), tmp_path / "out")
