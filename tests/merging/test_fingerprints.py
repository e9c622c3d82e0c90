"""Hashes of the models' files, taken beside other work."""

import hashlib
import os

import pytest

from petkit.errors import ArtifactError, InputError
from petkit.merging import fingerprints as module
from petkit.merging.fingerprints import fingerprints


@pytest.fixture
def folders(family):
    return {"a": family.write("a", family.base), "b": family.write("b", family.models[0])}


def own(folders):
    return {
        f"{name}/model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        for name, folder in folders.items()
    }


def test_hashes_of_files(folders):
    with fingerprints(folders) as hashes:
        assert hashes.result() == own(folders)


def test_it_waits_for_the_merging_and_goes_on(folders, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "LEAD", 200)
    with fingerprints(folders) as hashes:
        for share in (0.1, 0.5, 0.7):
            hashes.merged(share)
        assert hashes.result() == own(folders)


def test_it_stops_when_the_merging_fails(folders, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "LEAD", 0)
    with fingerprints(folders) as hashes:
        pass
    assert not hashes._thread.is_alive()


def test_a_file_that_becomes_shorter(folders, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "LEAD", 0)
    with fingerprints(folders) as hashes:
        os.truncate(folders["b"] / "model.safetensors", 70)
        with pytest.raises(ArtifactError, match=r"b/model\.safetensors became shorter"):
            hashes.result()


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(InputError, match="gone is missing"), fingerprints({"gone": tmp_path / "gone"}):
        pass
