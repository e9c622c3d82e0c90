import hashlib
import json
import pickle

import pytest

from petkit.artifacts import Base, Check, exit_code, verify, write_checks
from petkit.artifacts.reader import TENSORS
from petkit.errors import InputError
from tests.artifacts.support import edit_manifest, edit_tensors, manifest, write_small

HASH, OTHER = "ab" * 32, "cd" * 32


def failed(folder, **arguments):
    checks = verify(folder, **arguments)
    return {check.name: check.detail for check in checks if not check.ok}, exit_code(checks)


def test_a_sound_artifact_passes(tmp_path):
    folder = write_small(tmp_path / "a", manifest=manifest(base=Base(id="x", sha256=HASH)))
    write_checks(folder, [Check("reload", True)])
    checks = verify(folder, HASH)
    assert [check.name for check in checks] == [
        "no symlink leads out",
        "no pickles",
        "petkit.json",
        "tensor file",
        "tensors sha256",
        "tensor values",
        "down and up fit",
        "petkit.json fits the tensors",
        "config.yaml",
        "checks.json",
        "base sha256",
    ]
    assert all(check.ok for check in checks)


def test_a_sound_artifact_says_what_was_found(tmp_path):
    folder = write_small(tmp_path / "a", manifest=manifest(base=Base(id="x", sha256=HASH)))
    write_checks(folder, [Check("reload", True)])
    raw = (folder / TENSORS).read_bytes()
    values = "4 packed matrices and 2 dense tensors: lengths fit, padding is zero, all values are finite"
    assert {check.name: check.detail for check in verify(folder, HASH)} == {
        "no symlink leads out": "none among 4 files and folders",
        "no pickles": "none among 4 files and folders",
        "petkit.json": "valid, schema version 1: adapter for x",
        "tensor file": f"14 tensors fill its {len(raw):,} bytes without gap or overlap",
        "tensors sha256": f"the file has the one in petkit.json, {hashlib.sha256(raw).hexdigest()}",
        "tensor values": values,
        "down and up fit": "2 pairs, each with one bottleneck",
        "petkit.json fits the tensors": "same bits, codebook, classes and sites",
        "config.yaml": "valid YAML of 2 top-level keys",
        "checks.json": "1 of 1 checks passed when the artifact was written",
        "base sha256": f"the given base has the one in petkit.json, {HASH}",
    }


def test_damage_is_listed_and_gives_2(tmp_path):
    folder = edit_tensors(write_small(tmp_path / "a"), lambda raw: raw[:-1])
    (folder / "config.yaml").unlink()
    faults, code = failed(folder)
    assert set(faults) == {"tensor file", "config.yaml"}
    assert code == 2


def test_one_flipped_code_is_seen_by_the_hash_only(tmp_path):
    folder = edit_tensors(
        write_small(tmp_path / "a"), lambda raw: raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:], False
    )
    faults, code = failed(folder)
    stated = json.loads((folder / "petkit.json").read_text())["tensors_sha256"]
    found = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    told = f"the file has {found}, petkit.json says {stated}: it was altered or exchanged, copy it again"
    assert faults == {"tensors sha256": told}
    assert code == 2


def test_a_manifest_that_does_not_fit_gives_2(tmp_path):
    faults, code = failed(edit_manifest(write_small(tmp_path / "a"), adapter={"bits": 2}))
    assert "has 1 bits, petkit.json says 2" in faults["petkit.json fits the tensors"]
    assert code == 2


def test_values_out_of_range_give_2(tmp_path):
    folder = edit_tensors(write_small(tmp_path / "a"), lambda raw: raw[:-1] + bytes([raw[-1] | 0x80]))
    faults, code = failed(folder)
    assert "padding bits" in faults["tensor values"]
    assert code == 2


def test_a_missing_file_is_named(tmp_path):
    folder = write_small(tmp_path / "a")
    (folder / TENSORS).unlink()
    faults, code = failed(folder)
    assert faults["tensor file"].endswith(
        f"{TENSORS} is missing: copy it from where the artifact was written"
    )
    assert code == 2


@pytest.mark.parametrize(
    ("recorded", "given", "detail"),
    [
        (HASH, OTHER, f"the given base has {OTHER}, the adapter was trained on {HASH} (x): use that one"),
        (None, HASH, "petkit.json records no hash of the base to compare with: convert again with --base"),
    ],
)
def test_another_or_unknown_base_gives_3(tmp_path, recorded, given, detail):
    folder = write_small(tmp_path / "a", manifest=manifest(base=Base(id="x", sha256=recorded)))
    faults, code = failed(folder, base_sha256=given)
    assert set(faults) == {"base sha256"}
    assert detail in faults["base sha256"]
    assert code == 3


def test_a_failed_recorded_check_gives_3(tmp_path):
    folder = write_small(tmp_path / "a")
    write_checks(folder, [Check("reload", False, "logits differ by 0.4")])
    assert failed(folder) == ({"recorded: reload": "logits differ by 0.4"}, 3)
    details = {check.name: check.detail for check in verify(folder)}
    assert details["checks.json"] == "0 of 1 checks passed when the artifact was written"


def test_a_pickle_or_a_symlink_that_leads_out_gives_5(tmp_path):
    folder = write_small(tmp_path / "a")
    (folder / "optimizer.pt").write_bytes(pickle.dumps(1))
    (tmp_path / "secret").write_text("x")
    (folder / "plots").mkdir()
    (folder / "plots" / "link").symlink_to("../../secret")
    faults, code = failed(folder)
    assert faults == {
        "no pickles": "optimizer.pt: remove each, for loading one can run code",
        "no symlink leads out": "plots/link: replace each link by its file",
    }
    assert code == 5


def test_pickles_beyond_the_fifth_are_counted(tmp_path):
    folder = write_small(tmp_path / "a")
    for number in range(7):
        (folder / f"{number}.pt").write_bytes(b"")
    detail = failed(folder)[0]["no pickles"]
    assert detail.count(".pt") == 5
    assert detail.endswith(" and 2 more: remove each, for loading one can run code")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        verify(tmp_path / "none")
