"""The outcome of checks: a table for the reader, `checks.json` for later, an exit code for scripts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from petkit.artifacts.files import write_json
from petkit.artifacts.strict_json import parse_json
from petkit.errors import ArtifactError, GateError

CHECKS = "checks.json"
MAX_CHECKS = 4 * 2**20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what was checked, such as `tensors sha256`.
        ok: whether it holds.
        detail: the numbers behind the verdict, in one line.
        exit_code: what a command ends with when it does not hold: 2 damaged, 3 a gate failed, 5 unsafe.
    """

    name: str
    ok: bool
    detail: str = ""
    exit_code: int = GateError.exit_code


def exit_code(checks: Sequence[Check]) -> int:
    """Return 0 when all checks hold, otherwise the code of the gravest failure: 5 before 2 before 3."""
    failed = {check.exit_code for check in checks if not check.ok}
    return next((code for code in (5, 2, 3) if code in failed), max(failed, default=0))


def write_checks(folder: str | os.PathLike[str], checks: Sequence[Check]) -> None:
    """Write `checks.json` into a folder.

    Raises:
        InputError: it cannot be written.
    """
    write_json(Path(folder) / CHECKS, checks_json(checks))


def checks_json(checks: Sequence[Check]) -> dict[str, object]:
    """Return the content of `checks.json`: whether all hold, and each check."""
    return {"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}


def parse_checks(raw: bytes, path: str) -> list[Check]:
    """Return the checks held by the bytes of `checks.json`.

    Raises:
        ArtifactError: it is not what `write_checks` writes.
    """
    try:
        return [Check(**entry) for entry in parse_json(raw)["checks"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a list of checks: {str(error)[:200]}") from error
