from dataclasses import replace
from pathlib import Path

import pytest

from petkit.artifacts import exit_code, read_artifact, verify
from petkit.artifacts.importing import import_petl_vit, with_base, write_imported
from petkit.errors import PetkitError

PATH = Path(__file__).parents[1] / "data" / "petl_vit" / "adaptformer-kitti-bit1-dim32.bin"


def test_the_base_may_be_told(tmp_path):
    imported = import_petl_vit(PATH)
    told = with_base(imported, {"name": "runs/my-vit", "weights": None}, "ab" * 32).manifest
    assert (told.base.id, told.base.sha256, told.model["name"]) == ("runs/my-vit", "ab" * 32, "runs/my-vit")
    kept = with_base(imported, None, "ab" * 32).manifest
    assert kept.base.id == imported.manifest.base.id
    assert imported.manifest.base.sha256 is None


def test_the_preprocessing_of_the_paper_is_recorded():
    preprocess = import_petl_vit(PATH).manifest.task.preprocess
    assert (preprocess.image_size, preprocess.interpolation) == (224, "bicubic")
    assert (preprocess.mean, preprocess.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_two_conversions_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("a", "b"):
        write_imported(import_petl_vit(PATH), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_loss_is_a_failed_check_that_verify_repeats(tmp_path):
    lossy = replace(import_petl_vit(PATH), same=lambda artifact: False)
    artifact, checks = write_imported(lossy, tmp_path / "a")
    assert exit_code(checks) == 3
    assert exit_code(verify(artifact.folder)) == 3
    assert read_artifact(artifact.folder).packed


def test_a_conversion_that_fails_at_the_end_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise PetkitError("no space left")

    monkeypatch.setattr("petkit.artifacts.importing.write_checks", full)
    with pytest.raises(PetkitError, match="no space left"):
        write_imported(import_petl_vit(PATH), tmp_path / "a")
    assert not list(tmp_path.iterdir())
