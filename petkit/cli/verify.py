"""`petkit verify ARTIFACT`: every check that needs no run, as a table; the exit code says how it went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petkit.cli import output
from petkit.cli.common import JsonFlag

if TYPE_CHECKING:
    from petkit.artifacts import Check


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help="Model, its weight file, or its sha256, that it must belong to."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> int:
    """Check an artifact: 0 all is well, 2 damaged, 3 another base or a failed recorded check, 5 unsafe."""
    from petkit.artifacts.checks import checks_json, exit_code
    from petkit.artifacts.kinds import kind_of
    from petkit.artifacts.verification import verify
    from petkit.cli import tagged, translated
    from petkit.cli.base_model import wanted_base
    from petkit.methods.binary_adapter.recorded import section_faults

    wanted = None if base is None else wanted_base(base, artifact)
    checks = verify(artifact, wanted, section_faults)
    recipe_checks = {"tagger": tagged.recipe_checks, "translator": translated.recipe_checks}
    checks += recipe_checks.get(str(kind_of(artifact)), _nothing)(artifact)
    rows = [("ok" if check.ok else "FAILED", check.name, check.detail) for check in checks]
    payload = {"artifact": str(artifact), **checks_json(checks)}
    output.print_result(output.table(("", "check", "detail"), rows), payload, as_json)
    return exit_code(checks)


def _nothing(_: Path) -> list[Check]:
    return []
