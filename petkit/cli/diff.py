"""`petkit diff A B`: where two artifacts differ."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petkit.cli import output
from petkit.cli.common import JsonFlag
from petkit.errors import GateError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from petkit.artifacts.comparison import Difference

COLUMNS = ("where", "name", "first", "second", "detail")
LONGEST = 60


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="An artifact folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    as_exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code", help="Exit with 3 when they differ in more than lineage, source and output."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> int:
    """Compare two artifacts: manifest, configuration, and how many bits of each matrix differ."""
    from petkit.artifacts.comparison import compare
    from petkit.artifacts.reader import read_artifact

    differences = compare(read_artifact(first), read_artifact(second))
    alike = all(one.is_incidental for one in differences)
    result = _page(differences, alike) if differences else f"{first} and {second} are the same"
    payload = {
        "same": not differences,
        "same_content": alike,
        "differences": [asdict(one) for one in differences],
    }
    output.print_result(result, payload, as_json)
    return 0 if alike or not as_exit_code else GateError.exit_code


def _page(differences: Sequence[Difference], alike: bool) -> RenderableType:
    from rich.console import Group

    rows = [tuple(_short(value) for value in asdict(one).values()) for one in differences]
    table = output.table(COLUMNS, rows)
    note = (
        "The tensors are bit-identical and the settings equal: only the artifacts' history or place differs."
    )
    return Group(table, note) if alike else table


def _short(text: str) -> str:
    """Cut a long value on a terminal; in a pipe or a file it stays whole."""
    return text if len(text) <= LONGEST or not sys.stdout.isatty() else f"{text[: LONGEST - 1]}…"
