"""The one place where a pickle is opened: in a child process, with limits and a bare environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from petkit.artifacts.tensor_file import RawTensor, read_tensor_file
from petkit.errors import InputError

CHILD = Path(__file__).with_name("unpickle_child.py")
SECONDS = 180.0


def read_pickled_tensors(path: Path, seconds: float = SECONDS) -> dict[str, RawTensor]:
    """Read a file of `torch.save` that holds a state dict, without unpickling anything in this process.

    The child bounds the damage of a hostile file; it is no security boundary.

    Args:
        path: the pickle.
        seconds: wall-clock time after which the child is killed.

    Returns:
        Tensors by name.

    Raises:
        InputError: the file is missing or no plain dict of tensors, or the child ran out of time or memory.
    """
    if not path.is_file():
        raise InputError(f"expected a file written by torch.save, {path} is missing or not a file")
    with tempfile.TemporaryDirectory(prefix="petkit-unpickle-") as folder:
        target = Path(folder) / "state.safetensors"
        _run(path.resolve(), target, seconds)
        return read_tensor_file(target.parent, target.name).tensors


def _run(source: Path, target: Path, seconds: float) -> None:
    # Nothing of the environment goes along except what the interpreter and its libraries need to start.
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "LANG") if key in os.environ}
    child = subprocess.Popen(
        [sys.executable, "-I", str(CHILD), str(source), str(target)],
        cwd=target.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        _, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        raise InputError(f"reading {source} took longer than {seconds:g} s and was stopped") from None
    if child.returncode != 0:
        reason = (errors.strip().splitlines() or [f"the child ended with {child.returncode}"])[-1]
        raise InputError(f"{source} cannot be read as a dict of tensors: {reason[:200]}")
