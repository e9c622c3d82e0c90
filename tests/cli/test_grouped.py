from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from petkit.cli.grouped import grouped


@dataclass(frozen=True)
class Size:
    """Two options."""

    width: Annotated[int, typer.Option("--width", help="How wide.")]
    height: Annotated[int, typer.Option("--height")] = 2

    def area(self) -> int:
        return self.width * self.height


def test_a_command_gets_the_dataclass_and_its_help_the_options() -> None:
    app = typer.Typer()

    @app.command()
    @grouped
    def paint(colour: str, size: Size, twice: Annotated[bool, typer.Option("--twice")] = False) -> None:
        """Paint."""
        typer.echo(f"{colour} {size.area()} {twice}")

    runner = CliRunner()
    assert runner.invoke(app, ["red", "--width", "3"]).output == "red 6 False\n"
    assert runner.invoke(app, ["red", "--width", "3", "--height", "5", "--twice"]).output == "red 15 True\n"
    missing = runner.invoke(app, ["red"])
    assert missing.exit_code == 2
    assert "--width" in missing.output
    shown = runner.invoke(app, ["--help"]).output
    assert "How wide." in shown
    assert "Paint." in shown
