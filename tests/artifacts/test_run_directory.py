import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from petkit.artifacts.run_directory import (
    LOCK,
    is_unstarted,
    is_without_checkpoint,
    open_run,
    refuse_unwritable,
)
from petkit.errors import InputError

HOLDER = (
    "import sys, time\n"
    "from petkit.artifacts import open_run\n"
    "with open_run(sys.argv[1], resume=True):\n"
    "    print('locked', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that has the directory `run` open."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_makes_the_folder_and_leaves_no_lock(tmp_path):
    with open_run(tmp_path / "a" / "b") as run:
        assert (run.path / LOCK).exists()
        assert not run.resumed
        (run.path / "result.json").write_text("{}")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result.json"]


def test_a_folder_that_can_be_made_is_left_unmade(tmp_path):
    refuse_unwritable(tmp_path)
    refuse_unwritable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/petkit/run", "file/run", "link"])
def test_a_folder_that_cannot_be_made_is_refused_as_the_run_would(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/proc/petkit")
    folder = tmp_path / place
    for attempt in (refuse_unwritable, lambda path: open_run(path).__enter__()):
        with pytest.raises(InputError, match=f"^cannot (make|write to) output folder {folder}: "):
            attempt(folder)


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    # Root, who may run the tests, has every right: so the question is answered here.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"^cannot write to output folder {tmp_path}: choose another$"):
        refuse_unwritable(tmp_path)


def test_a_folder_with_files_needs_a_flag(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with (
        pytest.raises(InputError, match="is not empty: choose another, --resume or --overwrite"),
        open_run(tmp_path),
    ):
        pass
    with open_run(tmp_path, resume=True) as run:
        assert run.resumed
    with open_run(tmp_path, overwrite=True) as run:
        assert not run.resumed
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    with (
        pytest.raises(InputError, match="exclude each other"),
        open_run(tmp_path, overwrite=True, resume=True),
    ):
        pass


@pytest.mark.parametrize(
    ("files", "unstarted", "without_checkpoint"),
    [
        ({}, True, True),
        ({LOCK: "x", "metrics.jsonl": "", "config.yaml": "a: 1", ".checkpoint-4.ab.partial": ""}, True, True),
        ({"metrics.jsonl": "{}\n"}, False, True),
        ({"metrics.jsonl": "{}\n", "tensorboard": ""}, False, True),
        ({"metrics.jsonl": "", "thesis.tex": ""}, False, False),
        ({"metrics.jsonl": "{}\n", "checkpoint-4": ""}, False, False),
        ({"config.yaml": "", "petkit.json": ""}, False, False),
        ({".bashrc": ""}, False, False),
    ],
)
def test_what_a_died_run_leaves_is_told_from_what_it_worked_out(
    tmp_path, files, unstarted, without_checkpoint
):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert is_unstarted(tmp_path) == unstarted
    assert is_without_checkpoint(tmp_path) == without_checkpoint
    assert not is_without_checkpoint(tmp_path / "missing")


def test_an_unstarted_folder_needs_no_flag(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with open_run(tmp_path) as run:
        assert not run.resumed


def test_overwrite_does_not_delete_what_petkit_did_not_write(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(InputError, match="deletes only what petkit wrote"),
        open_run(tmp_path, overwrite=True),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_unlinks_a_symlink_and_not_what_it_points_to(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "image.png").write_text("x")
    with open_run(tmp_path / "run") as run:
        (run.path / "metrics.jsonl").write_text("")
        (run.path / "data").symlink_to(tmp_path / "data")
    with open_run(tmp_path / "run", overwrite=True):
        pass
    assert (tmp_path / "data" / "image.png").exists()


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_two_runs_into_one_directory_are_refused(tmp_path, holder, flags):
    with pytest.raises(InputError, match=rf"in use by another run \(process {holder.pid} on "):
        open_run(tmp_path / "run", **flags).__enter__()
    assert (tmp_path / "run" / LOCK).exists()


def test_two_runs_of_one_process_are_refused(tmp_path):
    with open_run(tmp_path), pytest.raises(InputError, match="another run of this process"):
        open_run(tmp_path, resume=True).__enter__()
    with open_run(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with open_run(tmp_path / "run") as run:
        assert f"process {os.getpid()} " in (run.path / LOCK).read_text()


def _sleep_as_child(seconds, started):
    started.set()
    time.sleep(seconds)


# Newer Pythons warn of forks beside threads; torch's loader workers are such forks, which is the point here.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    with open_run(tmp_path):
        child = context.Process(target=_sleep_as_child, args=(30, started))
        child.start()
        started.wait()
    try:
        with open_run(tmp_path):
            pass
    finally:
        child.kill()
        child.join()


def test_an_error_inside_releases_the_directory(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), open_run(tmp_path):
        raise RuntimeError("boom")
    with open_run(tmp_path):
        pass


def test_a_path_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make output folder"):
        open_run(tmp_path / "file").__enter__()
    with pytest.raises(InputError, match="cannot make output folder"):
        open_run(tmp_path / "file" / "x").__enter__()
