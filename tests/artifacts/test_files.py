import errno
import os
import subprocess
import sys

import pytest

from petkit.artifacts.files import atomic_write, write_folder, write_json
from petkit.errors import InputError

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
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; nothing was left"):
        write_folder(tmp_path / "out", FILES)
    assert names(tmp_path) == []


def test_full_disk_leaves_the_old_file(tmp_path, full_disk):
    (tmp_path / "a").write_text("old")
    with pytest.raises(InputError, match="No space left on device"):
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
    with pytest.raises(InputError, match="Input/output error"):
        write_folder(tmp_path / "out", FILES)
    assert names(tmp_path / "out") == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_real_limit_on_the_file_size_leaves_nothing(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "from petkit.artifacts.files import write_folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    write_folder(sys.argv[1], {'a': b'x', 'b': bytes(10_000)})\n"
        "except ValueError as error:\n    print(error)\n"
    )
    target = tmp_path / "out"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True
    )
    assert "File too large; nothing was left under that name" in ran.stdout
    assert names(tmp_path) == []


def test_json_refuses_what_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    write_json(tmp_path / "a.json", {"name": "é"})
    assert (tmp_path / "a.json").read_text() == '{\n  "name": "é"\n}\n'
