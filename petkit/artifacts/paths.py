"""Names and paths inside an artifact: short, plain, and never leading out of the folder."""

from __future__ import annotations

import os
import re
import stat
from io import FileIO
from pathlib import Path

from petkit.errors import ArtifactError, InputError, SafetyError

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def check_name(name: str, what: str) -> str:
    """Return `name`, or refuse one that is empty, too long, or not made of [A-Za-z0-9._-]."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise SafetyError(f"{what} must match [A-Za-z0-9._-]{{1,128}} and name no folder, got {name[:140]!r}")
    return name


def check_tensor_name(name: str, where: str) -> str:
    """Return a tensor's name; one that could be a path is refused for safety, another odd one as damage."""
    if NAME.fullmatch(name) and name not in (".", ".."):
        return name
    if not name or "/" in name or "\\" in name or name in (".", ".."):
        return check_name(name, "a tensor name")
    raise ArtifactError(f"{where}: a tensor name must match [A-Za-z0-9._-]{{1,128}}, got {name[:140]!r}")


def check_relative(name: str) -> str:
    """Return a relative path of plain names joined by /, or refuse it."""
    for part in name.split("/"):
        check_name(part, f"each part of the file name {name[:140]!r}")
    return name


def open_inside(folder: Path, name: str) -> FileIO:
    """Open a regular file of a folder for reading.

    Args:
        folder: the artifact; it may itself be a symlink, since the user named it.
        name: relative path of plain names.

    Returns:
        The file, open in binary mode and unbuffered.

    Raises:
        FileNotFoundError: there is no such file; the caller knows what its absence means.
        InputError: it cannot be opened, or is not a regular file.
        SafetyError: the path leaves the folder, by its name or through a symlink.
    """
    path = folder / check_relative(name)
    refuse_outside(folder, path)
    try:
        # Without O_NONBLOCK, opening a named pipe that somebody put here would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} must be a regular file")
    return FileIO(descriptor, "rb")


def refuse_outside(folder: Path, path: Path) -> None:
    """Refuse a path that a symlink leads out of the folder."""
    # realpath costs a system call for every part of the path, so it runs only when there is a link to follow.
    parts = path.relative_to(folder).parts
    links = any((folder / Path(*parts[: depth + 1])).is_symlink() for depth in range(len(parts)))
    if links and not path.resolve().is_relative_to(folder.resolve()) and not _is_of_hub(folder, path):
        raise SafetyError(
            f"{path} is a symlink that leaves the artifact folder: copy the file into the folder instead"
        )


def _is_of_hub(folder: Path, path: Path) -> bool:
    """Whether a link is one of the hub's cache: from models--X/snapshots/REVISION to models--X/blobs."""
    snapshots = folder.resolve().parent
    return snapshots.name == "snapshots" and path.resolve().parent == snapshots.with_name("blobs")


def looks_like_pickle(head: bytes, last: bytes = b".") -> bool:
    """Tell whether a file is a zip archive (torch.save), an old torch.save file or a plain pickle.

    Args:
        head: the first bytes of the file, at least 16 when it has them.
        last: its last byte; a plain pickle ends with a full stop.

    Returns:
        True for the three kinds of file, all of which can run code when they are loaded without care.
    """
    if head.startswith((b"PK\x03\x04", _LEGACY_TORCH)):
        return True
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and last == b"."


def refuse_pickle(path: Path) -> SafetyError:
    """Return the error for a pickle, with the way round it."""
    return SafetyError(
        f"{path} is a pickle, which can run code when it is loaded; petkit reads safetensors. "
        "For a PEFT adapter you trust: petkit convert FOLDER --from peft --allow-pickle -o OUT"
    )
