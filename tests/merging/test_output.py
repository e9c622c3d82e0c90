"""What is written: in order, hashed on the way, and refused where the disk does not take it."""

import errno
import os
from contextlib import contextmanager

import pytest

from petkit.errors import GateError, PetkitError
from petkit.merging.config import read_merge_config
from petkit.merging.folders import merge_folders


@contextmanager
def silent(_):
    yield lambda count: None


@pytest.fixture
def merge(family):
    path = family.folder / "c.yml"
    path.write_text(
        f"merge_method: linear\nmodels:\n  - {{model: {family.folder}/m0, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {family.folder}/m1, parameters: {{weight: 1}}}}\n"
    )
    output = family.folder / "out"

    def run(shard_bytes=10**9):
        return merge_folders(read_merge_config(path), {}, output, shard_bytes=shard_bytes, progress=silent)

    run.output = output
    return run


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk(merge, monkeypatch, call):
    monkeypatch.setattr(f"petkit.merging.output.os.{call}", full)
    with pytest.raises(PetkitError, match="No space left on device"):
        merge()
    assert not merge.output.exists()


@pytest.mark.parametrize("shard_bytes", [10**9, 200])
def test_bytes_that_change_on_the_way_to_the_disk(merge, monkeypatch, shard_bytes):
    write = os.pwrite

    def altered(file, data, position):
        data = bytes(data)
        # The lowest bit of a float32: still finite.
        return write(file, bytes([data[0] ^ 1]) + data[1:] if position % 8 == 0 else data, position)

    def later(file, data, position):
        return altered(file, data, position) if position > 0 else write(file, data, position)

    monkeypatch.setattr("petkit.merging.output.os.pwrite", later)
    with pytest.raises(GateError, match="is what was merged"):
        merge(shard_bytes)


def test_writes_that_take_a_part(merge, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(
        "petkit.merging.output.os.pwrite", lambda file, data, position: write(file, data[:100], position)
    )
    assert merge()["status"] == "completed"
