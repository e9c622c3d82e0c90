"""`petkit config validate|schema|show`: what a recipe may hold, whether it is right, what it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import output
from petkit.cli.catalog import (
    METHODS,
    configuration_of,
    is_command,
    load_configuration,
    method_for,
    unknown_command,
    whole_command,
)
from petkit.cli.common import ConfigArgument, ConfigOption, JsonFlag, SetOption, recipe_files
from petkit.cli.shipped import header
from petkit.errors import ConfigError

if TYPE_CHECKING:
    from petkit.configuration import Config, Resolved

SCHEMA_COLUMNS = ("key", "type", "default", "has an effect with", "meaning")

app = typer.Typer(help="Validate, explain and show configurations.")

CommandOption = Annotated[
    str | None,
    typer.Option("--command", metavar="COMMAND", help="Default: the recipe's `# command:` line."),
]


@app.command()
def validate(
    recipe: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    command: CommandOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a recipe; every error is named with its key and line. Models and data are left to --dry-run."""
    files = recipe_files(recipe, config)
    name, _ = _resolve(files, overrides, command)
    text = f"{', '.join(str(file) for file in files)}: valid for `petkit {name}`"
    output.print_result(text, {"valid": True, "command": name, "files": files}, as_json)


@app.command()
def show(
    recipe: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    command: CommandOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say who set each key.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print the configuration that a run would use.

    Later wins: defaults, recipe files in order, variables such as PETKIT_SET__TRAINING__EPOCHS=3, --set,
    and in a run its named flags.
    """
    from petkit.configuration import dump_yaml, effective

    name, resolved = _resolve(recipe_files(recipe, config), overrides, command)
    text = _with_origins(resolved) if origin else dump_yaml(resolved.config).rstrip("\n")
    payload = {"command": name, "config": effective(resolved.config), "origins": resolved.origins}
    output.print_result(text, payload, as_json)


@app.command()
def schema(
    words: Annotated[list[str], typer.Argument(metavar="COMMAND", help="Such as: train adapter.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", metavar="KIND", help="Of the recipe: `distill` has text (default) and vision."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print every key that a command's recipe may hold: as a table, or as a JSON schema."""
    model = configuration_of(whole_command(" ".join(words)), kind)
    output.print_result(output.table(SCHEMA_COLUMNS, schema_rows(model)), model.model_json_schema(), as_json)


def _resolve(
    files: list[Path], overrides: list[str] | None, command: str | None
) -> tuple[str, Resolved[Any]]:
    named = [command] if command else _named_by(files)
    if len(set(named)) > 1:
        raise ConfigError(f"the recipes are for different commands ({', '.join(named)}); pass --command")
    name, resolved = _as(named[0], files, overrides) if named else _guessed(files, overrides)
    for note in resolved.dropped:
        output.log(f"dropped: {note}")
    return name, resolved


def _named_by(files: list[Path]) -> list[str]:
    """The commands that the recipes' `# command:` lines name."""
    found = []
    for file in files:
        command = header(file).get("command") if file.is_file() else None
        if command is not None and not is_command(command):
            raise ConfigError(unknown_command(command, f"the `# command:` line of {file.name}"))
        found += [] if command is None else [command]
    return found


def _as(command: str, files: list[Path], overrides: list[str] | None) -> tuple[str, Resolved[Any]]:
    from petkit.configuration import resolve

    model = load_configuration(method_for(command, files, overrides or ()))
    return command, resolve(model, files, overrides or ())


def _guessed(files: list[Path], overrides: list[str] | None) -> tuple[str, Resolved[Any]]:
    """The recipe as that of the one command that takes it; of several the first."""
    from petkit.configuration import load_yaml

    # A command whose keys all have defaults takes a recipe without any, which no one means to have written.
    if not overrides and not any(load_yaml(file).data for file in files):
        raise ConfigError(
            f"{', '.join(map(str, files))} is empty: expected the keys of a recipe, such as "
            "`output: runs/x`, or --command to see what one without keys comes to"
        )
    commands = list(dict.fromkeys(method.command for method in METHODS))
    errors = {}
    for command in commands:
        try:
            return _as(command, files, overrides)
        except ConfigError as error:
            errors[command] = str(error)
    # The command that knows most of the keys, if not their values.
    closest = min(commands, key=lambda command: errors[command].count("unknown key"))
    if closest == commands[0]:
        raise ConfigError(errors[closest])
    raise ConfigError(
        f"{errors[closest]}\n(taken as a recipe of `petkit {closest}`: if it is another's, pass --command or "
        "begin it with a line such as `# command: train tagger`)"
    )


def _with_origins(resolved: Resolved[Any]) -> str:
    from petkit.configuration import dump_yaml
    from petkit.configuration.reader import parse_yaml

    text = dump_yaml(resolved.config)
    lines = text.splitlines()
    numbers = parse_yaml(text, Path("config.yaml")).lines
    width = max(len(line) for line in lines) + 2
    for key, where in resolved.origins.items():
        if key in numbers:
            lines[numbers[key] - 1] = f"{lines[numbers[key] - 1]:<{width}}# {where}"
    return "\n".join(lines)


def schema_rows(model: type[Config]) -> list[tuple[str, ...]]:
    """One row of `SCHEMA_COLUMNS` for every key of a configuration."""
    from petkit.configuration.sections import leaves

    return [
        (
            ".".join(path),
            _type_name(field.annotation),
            "required" if field.is_required() else _yaml(field.get_default(call_default_factory=True)),
            _conditions(field),
            " ".join((field.description or "").split()),
        )
        for path, field, _ in leaves(model)
    ]


def _conditions(field: Any) -> str:
    from petkit.configuration.messages import shown_word
    from petkit.configuration.sections import alternatives_of

    def word(value: object) -> str:
        return shown_word(value) if isinstance(value, dict) else _yaml(value)

    return " or ".join(
        ", ".join(f"{name} {'|'.join(map(word, values))}" for name, values in one.items())
        for one in alternatives_of(field)
    )


def _yaml(value: object) -> str:
    """A value as it is written in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type_name(annotation: Any) -> str:
    from typing import Literal, get_args, get_origin

    if get_origin(annotation) is Literal:
        return "|".join(str(one) for one in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if get_args(annotation):
        return " or ".join(_type_name(one) for one in get_args(annotation))
    name = getattr(annotation, "__name__", str(annotation))
    return {"NoneType": "null", "str": "text", "float": "number"}.get(name, name)
