"""What commands that run a recipe share: their flags, their folder, device and processes, and the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from petkit.cli import common, output
from petkit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from petkit.configuration import Config
    from petkit.training.context import RunContext, StepReport

NEWEST = "newest"
AnyConfig = TypeVar("AnyConfig", bound="Config")
Recipe = Callable[[Any, "RunContext"], dict[str, Any] | None]


class OptionalValue(TyperCommand):
    """Lets `--resume` stand alone: the parser knows options with a value and options without, not both."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a lone `--resume` its meaning; a checkpoint behind it stays its value."""
        return list(super().parse_args(ctx, list(_with_values(args))))


def _with_values(args: Sequence[str]) -> Iterator[str]:
    for position, argument in enumerate(args):
        follower = args[position + 1] if position + 1 < len(args) else ""
        valued = os.path.isdir(follower) or Path(follower).name.startswith("checkpoint-")
        yield f"{argument}={NEWEST}" if argument == "--resume" and not valued else argument


FolderOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the run.")
]
MaxStepsOption = Annotated[
    int | None, typer.Option("--max-steps", metavar="N", min=1, help="Stop after N optimiser steps.")
]
MaxTimeOption = Annotated[
    str | None, typer.Option("--max-time", metavar="TIME", help="Stop after 90s, 30m or 2h.")
]
SkipBadFlag = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable files out, naming each.")]
ResumeOption = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="[CHECKPOINT]",
        help="Go on from the output folder's newest complete checkpoint, else from the start; or from this "
        "one.",
        rich_help_panel=common.RUN_PANEL,
    ),
]
DtypeOption = Annotated[
    common.Dtype | None,
    typer.Option("--dtype", help="Sets training.precision: fp32 or bf16.", rich_help_panel=common.RUN_PANEL),
]
DeterministicFlag = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Refuse kernels whose result varies.", rich_help_panel=common.RUN_PANEL
    ),
]


@dataclass(frozen=True)
class Surroundings:
    """Flags of every method, none of which but the seed, the limits and the precision changes the weights."""

    recipe: common.ConfigArgument = None
    config: common.ConfigOption = None
    settings: common.SetOption = None
    seed: common.SeedOption = None
    folder: FolderOption = None
    max_steps: MaxStepsOption = None
    max_time: MaxTimeOption = None
    resume: ResumeOption = None
    dry_run: common.DryRunFlag = False
    device: common.DeviceOption = "auto"
    dtype: DtypeOption = None
    threads: common.ThreadsOption = None
    deterministic: DeterministicFlag = False
    overwrite: common.OverwriteFlag = False
    as_json: common.JsonFlag = False

    def resolve(self, model: type[AnyConfig], **more: Any) -> AnyConfig:
        """The recipe with the settings and flags put upon it."""
        from petkit.configuration import resolve

        flags = {
            "seed": self.seed,
            "output": None if self.folder is None else str(self.folder),
            "training.max_steps": self.max_steps,
            "training.max_time": self.max_time,
            "training.precision": None if self.dtype is None else self.dtype.precision,
            **more,
        }
        files = common.recipe_files(self.recipe, self.config)
        resolved = resolve(model, files, self.settings or (), flags)
        output.log_notes(resolved.dropped)
        return resolved.config


def work(
    recipe: Recipe,
    config: Any,
    surroundings: Surroundings,
    tokens: bool = False,
    stage_unit: str = "sentences",
) -> dict[str, Any] | None:
    """Call a recipe on the device and the processes that the flags ask for.

    Args:
        recipe: what to call.
        config: of it.
        surroundings: the flags.
        tokens: show the rate in tokens instead of examples.
        stage_unit: what is counted in work before the first step.

    Returns:
        What it gives; None but on the first process.
    """
    from petkit.training import device as devices
    from petkit.training import distributed
    from petkit.training.context import RunContext

    devices.configure(surroundings.threads, surroundings.deterministic)
    chosen = devices.resolve_device(surroundings.device)
    target, resume = Path(config.output), surroundings.resume
    checkpoint = None if resume is None else _checkpoint(resume, target)
    world = distributed.start(chosen)
    try:
        with _Bar(tokens) as bar:
            restart = resume is not None and checkpoint is None
            context = RunContext(
                target,
                chosen,
                world,
                checkpoint,
                surroundings.overwrite,
                restart,
                watch=bar.watch,
                stage=partial(_stage, stage_unit),
            )
            result = recipe(config, context)
    finally:
        distributed.finish(world)
    return result if world.is_main else None


def _stage(unit: str, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return output.progress(label, total, unit)


class _Bar:
    """A progress bar that opens with the first step, when the number of steps is known."""

    def __init__(self, tokens: bool) -> None:
        self._tokens = tokens
        self._stack = ExitStack()
        self._advance: output.Advance | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def watch(self, report: StepReport) -> None:
        """Show one optimiser step."""
        if self._advance is None:
            # This step took its time before the bar was there: the rate is of those that follow.
            bar = output.progress("training", report.total_steps, done=report.step)
            self._advance = self._stack.enter_context(bar)
            new = 0
        else:
            new = 1
        # Short, so that a bar of some length fits beside it on 80 columns.
        rate = f"{report.examples_per_second:,.0f} examples/s"
        if self._tokens:
            rate = f"{report.terms_per_second:,.0f} tokens/s"
        self._advance(new, note=f"loss {report.loss:.4f}, {rate}")


def check_output(folder: Path, overwrite: bool, resume: bool) -> None:
    """Refuse the output folder before any work, as the run itself would after it; nothing is changed."""
    from petkit.artifacts.run_directory import (
        is_unstarted,
        refuse_foreign,
        refuse_locked,
        refuse_long_names,
        refuse_unwritable,
    )

    if overwrite and resume:
        raise ConfigError("--overwrite and --resume exclude each other: one deletes what the other continues")
    refuse_long_names(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} must be a folder, it is a file: choose another")
    refuse_unwritable(folder)
    if not folder.is_dir():
        return
    refuse_locked(folder)
    if is_unstarted(folder):
        return
    if overwrite:
        refuse_foreign(folder)
    elif not resume:
        raise InputError(f"output folder {folder} is not empty: choose another, --resume or --overwrite")


def _checkpoint(resume: str, folder: Path) -> Path | None:
    """Find the checkpoint that `--resume` means: the newest one of a run's folder, or the one given.

    None when the folder's run died before its first one, so that going on means to begin again.
    """
    from petkit.artifacts.run_directory import is_without_checkpoint
    from petkit.training import checkpoint

    if resume == NEWEST and not folder.exists():
        output.log(f"{folder} does not exist: there is nothing to resume, the run begins at the first step")
        return None
    if resume == NEWEST and is_without_checkpoint(folder):
        output.log(f"{folder} holds no checkpoint yet: its run begins again at the first step")
        return None
    given = folder if resume == NEWEST else Path(resume)
    return given if (given / "state.json").exists() else checkpoint.newest(given)


def finish(
    rows: Sequence[tuple[str, str]], result: Mapping[str, Any], folder: Path, surroundings: Surroundings
) -> None:
    """Draw the report of a finished run, and print its result.

    Args:
        rows: the table's, name and value.
        result: for --json.
        folder: of the run.
        surroundings: its flags.
    """
    if not surroundings.dry_run:
        _report(folder)
    content = {**result, "folder": str(folder)}
    output.print_result(output.table(("", ""), rows), content, surroundings.as_json)


def _report(folder: Path) -> None:
    from petkit.report.html import write_report

    # The artifact is complete and checked: a report that cannot be drawn is worth a warning, not the run.
    try:
        write_report(folder)
    except Exception as error:
        output.warn(f"no report.html: {type(error).__name__}: {error}")
