"""`petkit recipes ls|show|cp`: the YAML recipes and experiments that come with petkit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petkit.cli import output, vtab
from petkit.cli.catalog import load_configuration, method_for
from petkit.cli.common import DANGER_PANEL, JsonFlag, SetOption
from petkit.cli.shipped import Recipe, shipped_experiments, shipped_recipes
from petkit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from petkit.configuration import Config

app = typer.Typer(help="List, show and copy the shipped recipes and experiments.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name from `petkit recipes ls`.")]


@app.command("ls")
def list_recipes(as_json: JsonFlag = False) -> None:
    """List the shipped recipes, those that need nothing of yours first, and the experiments."""
    recipes = _shipped()
    rows = [(recipe.name, recipe.command, recipe.needs, recipe.summary) for recipe in recipes]
    keys = ("name", "command", "needs", "summary")
    payload = {"recipes": [dict(zip(keys, row, strict=True)) for row in rows]}
    output.print_result(output.table(keys, rows), payload, as_json)


@app.command()
def show(name: NameArgument, as_json: JsonFlag = False) -> None:
    """Print a recipe."""
    text = _recipe(name).path.read_text(encoding="utf-8")
    output.print_result(text.rstrip("\n"), {"name": name, "text": text}, as_json)


@app.command()
def cp(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write.")],
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", help="vtab1k recipes: the task to fill in."),
    ] = None,
    overrides: SetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE when it exists.", rich_help_panel=DANGER_PANEL)
    ] = False,
) -> None:
    """Copy a recipe to a file of your own, with its comments, and with changes when asked for."""
    from petkit.artifacts.files import atomic_write
    from petkit.configuration import edit_yaml, parse_override

    text, model = _recipe(name).path.read_text(encoding="utf-8"), _configuration(_recipe(name))
    given = (parse_override(one, model) for one in overrides or ())
    changes = {".".join(path): value for path, value in given}
    if task:
        changes = vtab.changes(name, task, changes) | changes
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists; choose another name or pass --overwrite")
    if not file.resolve().parent.is_dir():
        raise InputError(f"{file} must lie in a folder that exists; {file.resolve().parent} does not")
    atomic_write(file, edit_yaml(text, changes).encode())
    output.log(f"wrote {file}; run it with: petkit {_recipe(name).command} {file}")


def _recipe(name: str) -> Recipe:
    shipped = {recipe.name: recipe for recipe in _shipped()}
    if name not in shipped:
        from petkit.configuration.messages import nearest

        near = nearest(name, shipped)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(shipped)}"
        raise ConfigError(f"no shipped recipe is named {name!r}; {hint}")
    return shipped[name]


def _configuration(recipe: Recipe) -> type[Config]:
    """What the keys of a recipe, or of an experiment, are."""
    if recipe in shipped_experiments():
        from petkit.benchmarks.experiment import ExperimentConfig

        return ExperimentConfig
    return load_configuration(method_for(recipe.command, [recipe.path]))


def _shipped() -> list[Recipe]:
    return [*shipped_recipes(), *shipped_experiments()]
