import errno
import os

import numpy as np
import pytest
import torch

from petkit.artifacts import (
    Check,
    open_run,
    read_artifact,
    staged_artifact,
    staged_in_run,
    write_artifact,
    write_checks,
)
from petkit.artifacts.reader import MANIFEST, TENSORS
from petkit.errors import ArtifactError, InputError, PetkitError, SafetyError
from tests.artifacts.support import adapter_matrices, head, manifest, write_small


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    one, other = write_small(tmp_path / "a"), write_small(tmp_path / "b")
    assert contents(one) == contents(other)


def test_order_of_the_arguments_does_not_matter(tmp_path):
    packed, dense = adapter_matrices({"s": (4, 2, 4), "r": (4, 2, 4)}, 2), head()
    one = write_small(tmp_path / "a", bits=2, packed=packed, dense=dense)
    turned = {
        key: {name: part[name] for name in reversed(part)}
        for key, part in (("packed", packed), ("dense", dense))
    }
    assert contents(one) == contents(write_small(tmp_path / "b", bits=2, **turned))


def test_torch_and_numpy_tensors_are_written_alike(tmp_path):
    dense = {name: torch.from_numpy(array).t().contiguous().t() for name, array in head().items()}
    assert contents(write_small(tmp_path / "a", dense=dense)) == contents(write_small(tmp_path / "b"))


def test_a_non_empty_folder_is_refused_and_an_empty_one_used(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    write_small(folder)
    with pytest.raises(InputError, match="is not empty: choose another, or --overwrite"):
        write_small(folder)
    write_small(folder, bits=2, overwrite=True)
    assert next(iter(read_artifact(folder).packed.values())).bits == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_overwrite_does_not_delete_what_petkit_did_not_write(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="--overwrite deletes only what petkit wrote"):
        write_small(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="must be a folder, it is a file"):
        write_small(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_extra_files_are_written_and_their_names_checked(tmp_path):
    folder = write_small(tmp_path / "a", extra_files={"README.md": "é", "plots/loss.png": b"\x89"})
    assert (folder / "README.md").read_text() == "é"
    assert (folder / "plots" / "loss.png").read_bytes() == b"\x89"
    for name in ("../x", "/etc/x", "a//b", "a b"):
        with pytest.raises(SafetyError, match="must match"):
            write_small(tmp_path / "b", extra_files={name: ""})
    with pytest.raises(ArtifactError, match=r"must not hold petkit\.json"):
        write_small(tmp_path / "b", extra_files={MANIFEST: "{}"})


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.dtype(">f4")])
def test_dense_tensors_of_other_dtypes_are_refused(tmp_path, dtype):
    with pytest.raises(ArtifactError, match="dtype"):
        write_small(tmp_path / "a", dense={"x": np.ones(3, dtype)})


def test_dense_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ArtifactError, match="x holds NaN or infinity"):
        write_small(tmp_path / "a", dense={"x": np.array([np.nan], np.float32)})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def full(monkeypatch):
    """Fills the disk, from the moment when it is called."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(os, "fsync", fail)


def test_full_disk_leaves_nothing_under_the_final_name(tmp_path, full):
    full()
    with pytest.raises(PetkitError, match="No space left on device"):
        write_small(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_staged_artifact_is_there_with_all_that_was_added_or_not_at_all(tmp_path, full):
    with staged_artifact(tmp_path / "a") as stage:
        write_small(stage)
        write_checks(stage, [Check("reload", True)])
        assert not (tmp_path / "a").exists()
    assert sorted(contents(tmp_path / "a")) == [TENSORS, "checks.json", "config.yaml", MANIFEST]

    def fill_up():
        with staged_artifact(tmp_path / "b") as stage:
            write_small(stage)
            full()
            write_checks(stage, [Check("reload", True)])

    with pytest.raises(
        PetkitError, match=rf"cannot write {tmp_path}/b/checks\.json: No space left"
    ) as caught:
        fill_up()
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_staged_artifact_respects_what_came_meanwhile(tmp_path):
    def race():
        with staged_artifact(tmp_path / "a") as stage:
            write_small(stage)
            write_small(tmp_path / "a", bits=2)

    with pytest.raises(InputError, match="is not empty"):
        race()
    assert next(iter(read_artifact(tmp_path / "a").packed.values())).bits == 2
    with staged_artifact(tmp_path / "a", overwrite=True) as stage:
        write_small(stage)
    assert next(iter(read_artifact(tmp_path / "a").packed.values())).bits == 1


def test_into_a_run_the_manifest_comes_last(tmp_path, monkeypatch):
    with open_run(tmp_path / "run") as run:
        (run.path / "metrics.jsonl").write_text("{}\n")
        with staged_in_run(run) as stage:
            assert stage.name == "run"
            write_small(stage)
            order, replace = [], os.replace
            monkeypatch.setattr(
                os, "replace", lambda *names: (order.append(os.path.basename(names[1])), replace(*names))
            )
    assert order[-1] == MANIFEST
    assert read_artifact(tmp_path / "run").packed
    assert sorted(contents(tmp_path / "run")) == [TENSORS, "config.yaml", "metrics.jsonl", MANIFEST]


def test_an_interrupted_write_into_a_run_changes_nothing(tmp_path, full):
    def fill_up(run):
        with staged_in_run(run) as stage:
            full()
            write_small(stage)

    with open_run(tmp_path / "run") as run:
        # As a process leaves it that was killed.
        write_small(run.path / ".artifact.partial" / "run")
        with pytest.raises(PetkitError, match=rf"cannot write {tmp_path}/run: No space left"):
            fill_up(run)
    assert not list((tmp_path / "run").iterdir())


def test_a_run_keeps_others_out_of_its_folder(tmp_path):
    with open_run(tmp_path / "run"), pytest.raises(InputError, match="in use by another run of this process"):
        write_small(tmp_path / "run", overwrite=True)


def test_arguments_are_checked_before_the_folder(tmp_path):
    with pytest.raises(ArtifactError, match=r"has 1 bits, petkit.json says 4"):
        write_artifact(
            tmp_path / "a",
            manifest=manifest(bits=4),
            config={},
            packed=adapter_matrices({"s": (4, 2, 4)}, 1),
            dense=head(),
        )
