"""Hashes of the models' files, taken beside other work."""

import hashlib
import os

import pytest

from petkit.errors import ArtifactError, InputError
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
        assert hashes.result() == own(folders)


def test_it_waits_for_the_merging_and_goes_on(folders):
    with fingerprints(folders, lead=0) as hashes:
        for share in (0.1, 0.101, 0.5, 0.7):
            hashes.merged(share)
        assert hashes.result() == own(folders)


def test_it_stops_when_the_merging_fails(folders):
    with fingerprints(folders, lead=0) as hashes:
        pass
    assert hashes._child.returncode is not None


def test_a_file_that_becomes_shorter(folders):
    # It waits before the last block: so much was not merged yet.
    with fingerprints(folders, lead=-(10**9)) as hashes:
        os.truncate(folders["b"] / "model.safetensors", 70)
        hashes._child.stdin.write("1e9\n")
        with pytest.raises(ArtifactError, match=r"model\.safetensors became shorter"):
            hashes.result()


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(InputError, match="gone is missing"), fingerprints({"gone": tmp_path / "gone"}):
        pass
