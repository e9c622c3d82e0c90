"""Arguments and flags that mean the same in every verb."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from petkit.cli.shipped import shipped_recipe, shipped_recipes
from petkit.errors import ConfigError, SafetyError

if TYPE_CHECKING:
    from petkit.training.config import Precision

RUN_PANEL = "Run"
DANGER_PANEL = "Danger"


class Dtype(str, Enum):
    """Number format of a forward pass."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def precision(self) -> Precision:
        """The same, as `training.precision` calls it."""
        return "bf16" if self is Dtype.BFLOAT16 else "fp32"


JsonFlag: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
AllowCodeFlag: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-code-exec",
        help="Run the recipe's reward.function, in a child process with limits: no security boundary.",
        rich_help_panel=DANGER_PANEL,
    ),
]
ConfigArgument: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE", help="Recipe files, or names of shipped recipes; a later one wins."),
]
ConfigOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--config", "-c", metavar="RECIPE", help="The same as the argument RECIPE."),
]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set one key, such as training.epochs=3; may be repeated."
    ),
]
OutputOption: TypeAlias = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; must not exist or be empty."),
]
BaseOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="The artifact's base in another place: a model's name or folder, or a weight file.",
    ),
]
SeedOption: TypeAlias = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="Root of every random stream.")
]
DeviceOption: TypeAlias = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.", rich_help_panel=RUN_PANEL),
]
DtypeOption: TypeAlias = Annotated[
    Dtype,
    typer.Option(
        "--dtype", help="Number format of the forward pass; weights stay float32.", rich_help_panel=RUN_PANEL
    ),
]
ThreadsOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="CPU threads of torch.", rich_help_panel=RUN_PANEL),
]
DryRunFlag: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Resolve everything, print the plan, do no work.", rich_help_panel=RUN_PANEL
    ),
]
OverwriteFlag: TypeAlias = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what is in the output folder.", rich_help_panel=DANGER_PANEL),
]


def limit(name: str, least: float, most: float | None, text: str, metavar: str = "X") -> Any:
    """An option that takes a number within bounds, nan being none.

    Args:
        name: of the option.
        least: smallest number.
        most: largest one; None for no bound.
        text: what the help says.
        metavar: what it calls the value.

    Returns:
        What typer wants beside the type.
    """
    parser = partial(_number, least, most)
    return typer.Option(name, metavar=metavar, min=least, max=most, parser=parser, help=text)


def _number(least: float, most: float | None, text: str) -> float:
    wanted = f"a number of at least {least:g}" if most is None else f"a number from {least:g} to {most:g}"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if least <= value and (most is None or value <= most):
        return value
    # What typer shows of any other error begins with its kind.
    from pydantic_core import PydanticCustomError

    raise PydanticCustomError("number", "must be {wanted}, got {found}", {"wanted": wanted, "found": text})


def recipe_files(arguments: Sequence[str] | None, options: Sequence[str] | None) -> list[Path]:
    """The recipe files of a command line: arguments first, then those of `--config`.

    Args:
        arguments: paths, or names of shipped recipes such as adapter-smoke.
        options: likewise.

    Returns:
        One path each; a file of the same name wins over a shipped recipe.

    Raises:
        ConfigError: there is none at all, or it is no file and nearly the name of a shipped one.
    """
    given = [*(arguments or ()), *(options or ())]
    if not given:
        raise ConfigError("a recipe must be given: a YAML file, or a name from `petkit recipes ls`")
    return [_recipe_file(one) for one in given]


def _recipe_file(text: str) -> Path:
    path = Path(text)
    if path.exists():
        return path
    shipped = shipped_recipe(text)
    if shipped:
        return shipped.path
    from petkit.configuration.messages import nearest

    near = nearest(text, (recipe.name for recipe in shipped_recipes()))
    if near:
        raise ConfigError(f"recipe {text} does not exist; did you mean {near}? (see `petkit recipes ls`)")
    return path


def check_code(function: str | None, allowed: bool) -> None:
    """Refuse to run a recipe's own code unless that was allowed.

    Args:
        function: the recipe's reward.function.
        allowed: whether --allow-code-exec was given.

    Raises:
        ConfigError: it was, and there is no such code.
        SafetyError: it was not.
    """
    if function is None and allowed:
        raise ConfigError("--allow-code-exec has no effect without reward.function: leave it out")
    if function is not None and not allowed:
        raise SafetyError(
            f"reward.function {function} is code that would run here: read it, then pass --allow-code-exec "
            "(a child process with limits, which is no security boundary), or --set reward.function=null"
        )


def refuse_flags(flags: Mapping[str, Any], why: Callable[[str], str]) -> None:
    """Refuse flags that are given and have no effect.

    Args:
        flags: values by name; None where a flag was not given.
        why: what to say behind the name of a flag.

    Raises:
        ConfigError: names the flag.
    """
    for name, value in flags.items():
        if value is not None and value != []:
            raise ConfigError(f"{name} has no effect{why(name)}")
