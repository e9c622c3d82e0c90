import errno
import os
import subprocess
import sys

import pytest

from petkit.artifacts.files import (
    atomic_write,
    atomic_write_all,
    move_into,
    staged_folder,
    write_folder,
    write_json,
)
from petkit.errors import InputError, PetkitError

FILES = {"a.txt": b"first", "plots/b.bin": bytes(10_000)}


@pytest.fixture(params=["write", "fsync", "rename"])
def full_disk(request, monkeypatch):
    """The disk is full at the third write, at an fsync, or when the directory is to grow."""
    calls = iter(range(100))

    original = getattr(os, request.param)

    def fail(*arguments, **keywords):
        if next(calls) >= (2 if request.param == "write" else 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # A short write first: the rest must be written by another call.
        return original(arguments[0], bytes(arguments[1])[:3]) if request.param == "write" else None

    monkeypatch.setattr(os, request.param, fail)
    monkeypatch.setattr(os, "replace", fail) if request.param == "rename" else None


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_is_written_whole(tmp_path):
    write_folder(tmp_path / "new" / "out", FILES)
    assert (tmp_path / "new" / "out" / "plots" / "b.bin").read_bytes() == FILES["plots/b.bin"]
    assert names(tmp_path / "new") == ["out"]


def test_folder_replaces_what_has_its_name(tmp_path):
    write_folder(tmp_path / "out", {"old": b"1"})
    write_folder(tmp_path / "out", FILES)
    assert names(tmp_path / "out") == ["a.txt", "plots"]
    assert names(tmp_path) == ["out"]


def test_full_disk_leaves_no_folder(tmp_path, full_disk):
    with pytest.raises(PetkitError, match=r"cannot write .*: No space left on device; nothing was left"):
        write_folder(tmp_path / "out", FILES)
    assert names(tmp_path) == []


def test_full_disk_leaves_the_old_file(tmp_path, full_disk):
    (tmp_path / "a").write_text("old")
    with pytest.raises(PetkitError, match="No space left on device"):
        atomic_write(tmp_path / "a", b"new content")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", {"old": b"1"})
    rename, calls = os.rename, iter(range(10))

    def fail(*arguments, **keywords):
        if next(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(*arguments, **keywords)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(PetkitError, match="Input/output error"):
        write_folder(tmp_path / "out", FILES)
    assert names(tmp_path / "out") == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_real_limit_on_the_file_size_leaves_nothing(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "from petkit.artifacts.files import write_folder\n"
        "from petkit.errors import PetkitError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    write_folder(sys.argv[1], {'a': b'x', 'b': bytes(10_000)})\n"
        "except PetkitError as error:\n    print(error)\n"
    )
    target = tmp_path / "out"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True
    )
    assert "File too large; nothing was left under that name" in ran.stdout
    assert names(tmp_path) == []


def test_a_failed_write_fails_the_run_and_a_wrong_place_is_the_users(tmp_path, full_disk):
    with pytest.raises(PetkitError) as caught:
        write_folder(tmp_path / "out", FILES)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("place", ["file/out", "n" * 300, "/proc/petkit/out"])
def test_a_wrong_place_is_told_as_the_users_fault(tmp_path, place):
    (tmp_path / "file").write_text("")
    for write in (lambda path: write_folder(path, FILES), lambda path: atomic_write(path, b"")):
        with pytest.raises(InputError, match="cannot write"):
            write(tmp_path / place)
    assert names(tmp_path) == ["file"]


def test_a_name_as_long_as_the_filesystem_allows(tmp_path):
    name = "é" * 127
    write_folder(tmp_path / name, FILES)
    write_folder(tmp_path / name, FILES)
    assert names(tmp_path) == [name]
    assert names(tmp_path / name) == ["a.txt", "plots"]


def test_files_that_belong_together_get_their_names_together(tmp_path, monkeypatch):
    (tmp_path / "b").write_text("old")
    original = os.open

    def fail(path, *arguments, **keywords):
        if "/.b." in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(PetkitError, match=r"cannot write .*/b: No space left"):
        atomic_write_all({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert names(tmp_path) == ["b"]
    monkeypatch.undo()
    atomic_write_all({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "new"]


def test_a_staged_folder_gets_its_name_at_the_end(tmp_path):
    with staged_folder(tmp_path / "deep" / "out") as stage:
        assert stage.name == "out"
        write_folder(stage, {"a": b"1"})
        atomic_write(stage / "b", b"2")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), PetkitError("boom")])
def test_a_staged_folder_leaves_nothing_behind_when_its_making_fails(tmp_path, error):
    write_folder(tmp_path / "old", {"a": b"old"})
    for place in (tmp_path / "deep" / "er" / "out", tmp_path / "old"):
        with pytest.raises(type(error)), staged_folder(place) as stage:  # noqa: PT012 - the body is the case
            write_folder(stage, {"a": b"new"})
            raise error
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old" / "a").read_text() == "old"


def test_an_error_inside_names_the_final_place(tmp_path):
    with pytest.raises(InputError) as caught, staged_folder(tmp_path / "out") as stage:
        raise InputError(f"{stage}/checks.json is bad")
    assert str(caught.value) == f"{tmp_path}/out/checks.json is bad"


def test_files_are_moved_and_the_last_one_tells_that_all_are_there(tmp_path, monkeypatch):
    write_folder(tmp_path / "new", {"a": b"new", "last": b"new", "plots/b": b"new"})
    write_folder(tmp_path / "run", {"kept": b"old", "last": b"old", "a": b"old"})
    order, replace = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda *pair: (order.append(os.path.basename(pair[1])), replace(*pair))
    )
    move_into(tmp_path / "new", tmp_path / "run", last="last")
    assert order[-1] == "last"
    assert names(tmp_path / "run") == ["a", "kept", "last", "plots"]
    assert (tmp_path / "run" / "last").read_text() == "new"


def test_a_move_that_fails_leaves_no_last_file(tmp_path, monkeypatch):
    write_folder(tmp_path / "new", {"a": b"new", "last": b"new"})
    write_folder(tmp_path / "run", {"last": b"old"})

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PetkitError, match="No space left"):
        move_into(tmp_path / "new", tmp_path / "run", last="last")
    assert names(tmp_path / "run") == []


def test_json_refuses_what_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    write_json(tmp_path / "a.json", {"name": "é"})
    assert (tmp_path / "a.json").read_text() == '{\n  "name": "é"\n}\n'


def test_a_place_that_another_process_is_making_is_refused(tmp_path):
    held = "import sys, time; from petkit.artifacts.files import staged_folder\n"
    held += "with staged_folder(sys.argv[1]) as stage:\n"
    held += "    stage.mkdir(); print('held', flush=True); time.sleep(60)"
    target = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", held, target], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="is being written by another process"), staged_folder(target):
            pass
        other.kill()
    left = list(tmp_path.glob(".out.*.partial"))
    assert len(left) == 1
    with staged_folder(target) as stage:
        stage.mkdir()
        assert not left[0].exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
