"""`petkit diff A B`: where two artifacts differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import output
from petkit.cli.common import JsonFlag
from petkit.errors import GateError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from petkit.artifacts.comparison import Difference

PACKED = ("tensor", "flipped", "changed codes", "shift", "scale")
DENSE = ("tensor", "changed values", "largest difference")
ALIKE = "The tensors are bit-identical and the settings equal: only the artifacts' history or place differs."
# Two such values and a name fit beside each other on a terminal of 100 columns.
LONGEST = 32


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
    """Compare two artifacts of any kind: manifest, configuration, and how much of each tensor differs."""
    from petkit.artifacts.any_kind import read_other
    from petkit.artifacts.comparison import compare
    from petkit.methods.binary_adapter.recorded import read_checked

    differences = compare(*(read_other(folder) or read_checked(folder) for folder in (first, second)))
    alike = all(one.is_incidental for one in differences)
    result = _page(differences, alike) if differences else f"{first} and {second} are the same"
    payload = {
        "same": not differences,
        "same_content": alike,
        "differences": [one.payload() for one in differences],
    }
    output.print_result(result, payload, as_json)
    return 0 if alike or not as_exit_code else GateError.exit_code


def _page(differences: Sequence[Difference], alike: bool) -> RenderableType:
    from rich.console import Group

    parts: list[Any] = []
    for table in _tables(differences):
        parts += ["", table] if parts else [table]
    if alike:
        parts += ["", ALIKE]
    return Group(*parts)


def _tables(differences: Sequence[Difference]) -> Iterator[RenderableType]:
    """One table for each place; of matrices of one form only what changed, one line each."""
    for where in ("petkit.json", "config.yaml", "tensors"):
        rows = [
            (one.name, _words(one.name, one.first), _words(one.name, one.second))
            for one in differences
            if one.where == where and not one.change
        ]
        if rows:
            yield output.table((where, "first", "second"), rows)
    changes = [(one.name, one.change) for one in differences if one.change]
    packed = [_packed_row(name, change) for name, change in changes if "values" not in change]
    dense = [_dense_row(name, change) for name, change in changes if "values" in change]
    for columns, found in ((PACKED, packed), (DENSE, dense)):
        # A column that is equal on both sides in every row says nothing.
        used = [position for position in range(len(columns)) if any(row[position] for row in found)]
        if used:
            cut = [[row[position] for position in used] for row in found]
            yield output.table([columns[position] for position in used], cut)


def _packed_row(name: str, change: Mapping[str, Any]) -> tuple[str, ...]:
    codes = (
        f"{change['changed_codes'] / change['codes']:.1%} of {change['codes']:,}" if "codes" in change else ""
    )
    moved = (f"{change[key][0]:.3g} -> {change[key][1]:.3g}" if key in change else "" for key in PACKED[3:])
    return name, f"{change['flipped_bits']:,}" if "codes" in change else "", codes, *moved


def _dense_row(name: str, change: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{change['changed_values']:,} of {change['values']:,}",
        f"{change['largest_difference']:.3g}",
    )


def _words(name: str, value: Any) -> str:
    from petkit.artifacts.comparison import ABSENT

    if value is ABSENT:
        return "-"
    if name == "lineage" and value:
        last, steps = value[-1], f"{len(value)} step{'s' if len(value) > 1 else ''}"
        return f"{steps}, last: {last['command']} at {last['version']}"
    if isinstance(value, dict) and "shape" in value:
        shape = "x".join(map(str, value["shape"])) or "scalar"
        kind = value.get("dtype") or f"{value['bits']} bits, {value['kind']}"
        return f"{shape}, {kind}"
    return _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    """Cut a long value on a terminal; in a pipe or a file it stays whole."""
    return text if len(text) <= LONGEST or not sys.stdout.isatty() else f"{text[: LONGEST - 1]}…"
