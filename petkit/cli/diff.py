"""`petkit diff A B`: where two artifacts differ."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from petkit.cli import output
from petkit.cli.common import JsonFlag
from petkit.errors import GateError

COLUMNS = ("where", "name", "first", "second", "detail")
LONGEST = 60


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="An artifact folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    as_exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with exit code 3 when they differ.")
    ] = False,
    as_json: JsonFlag = False,
) -> int:
    """Compare two artifacts: manifest, configuration, and how many bits of each matrix differ."""
    from petkit.artifacts.comparison import compare
    from petkit.artifacts.reader import read_artifact

    differences = compare(read_artifact(first), read_artifact(second))
    rows = [tuple(_short(value) for value in asdict(one).values()) for one in differences]
    result = output.table(COLUMNS, rows) if rows else f"{first} and {second} are the same"
    payload = {"same": not differences, "differences": [asdict(one) for one in differences]}
    output.print_result(result, payload, as_json)
    return GateError.exit_code if differences and as_exit_code else 0


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
