"""Run by a child process only: import a function of a user's file, and call it for every line that comes.

Usage: python -I reward_child.py FILE.py NAME
A line that comes is the function's arguments as JSON, a line that goes is {"value": ...} or {"error": ...}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 8 << 30
FILE_SIZE = 64 << 20
SHOWN = 300


def limit() -> None:
    """Bound memory and the size of files; how long a call takes is for the parent to bound."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: FILE_SIZE}
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = MEMORY
    for what, value in limits.items():
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def load(path: Path, name: str) -> Callable[..., Any]:
    """The function of a file."""
    # As if the file were run as a script: it may import what lies beside it.
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise ImportError(f"it has no function {name}")
    return found  # type: ignore[no-any-return]


def told(error: BaseException, path: Path) -> str:
    """An error as one line, with the last line of the user's file that it came through."""
    places = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    where = f" ({path.name}:{places[-1]})" if places else ""
    return f"{type(error).__name__}: {str(error)[:SHOWN]}{where}"


def main() -> None:
    """Say that the function is there, then answer line by line."""
    path, name = Path(sys.argv[1]), sys.argv[2]
    # What the function prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    limit()
    try:
        function = load(path, name)
    except BaseException as error:
        say(error=told(error, path))
        return
    say(value=None)
    for line in sys.stdin:
        try:
            value = function(**json.loads(line))
            # Numbers of NumPy and the like are no JSON.
            say(value=float(value) if hasattr(value, "__float__") else repr(value)[:SHOWN])
        except BaseException as error:
            say(error=told(error, path))


if __name__ == "__main__":
    main()
