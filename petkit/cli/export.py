"""`petkit export ARTIFACT --format peft|petl-vit -o OUT`: an artifact in another tool's format."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from petkit.cli import output
from petkit.cli.common import JsonFlag, OverwriteFlag


class Target(str, Enum):
    """Formats that can be written."""

    peft = "peft"
    petl_vit = "petl-vit"


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder.")],
    target: Annotated[Target, typer.Option("--format", help="The format to write.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write; petl-vit: or a .bin file.")
    ],
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> int:
    """Write an artifact in another tool's format; what the format cannot hold is refused, with the reason."""
    from petkit.artifacts.checks import checks_json, exit_code
    from petkit.artifacts.exporting import export_peft, export_petl_vit
    from petkit.methods.binary_adapter.recorded import read_checked

    write = export_peft if target is Target.peft else export_petl_vit
    exported = write(read_checked(artifact), out, overwrite)
    output.log_notes(exported.notes)
    paths = [str(path) for path in exported.paths]
    payload = {"files": paths, "notes": list(exported.notes), **checks_json(exported.checks)}
    output.print_result("\n".join(f"wrote {path}" for path in paths), payload, as_json)
    return exit_code(exported.checks)
