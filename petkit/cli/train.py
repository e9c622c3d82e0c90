"""`petkit train adapter|tagger|nat`: parse, call the recipe, print."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from petkit.cli import common, output
from petkit.cli.grouped import grouped
from petkit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from petkit.configuration import Config
    from petkit.training.context import RunContext, StepReport

app = typer.Typer(help="Fit a method to data from a YAML recipe.")

NEWEST = "newest"
AnyConfig = TypeVar("AnyConfig", bound="Config")
Recipe = Callable[[Any, "RunContext"], dict[str, Any] | None]


class _OptionalValue(TyperCommand):
    """Lets `--resume` stand alone: the parser knows options with a value and options without, not both."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a lone `--resume` its meaning; a checkpoint behind it stays its value."""
        return list(super().parse_args(ctx, list(_with_values(args))))


def _with_values(args: Sequence[str]) -> Iterator[str]:
    for position, argument in enumerate(args):
        follower = args[position + 1] if position + 1 < len(args) else ""
        valued = os.path.isdir(follower) or Path(follower).name.startswith("checkpoint-")
        yield f"{argument}={NEWEST}" if argument == "--resume" and not valued else argument


@app.callback()
def _group() -> None:
    """Fit a method to data from a YAML recipe."""


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
class _Surroundings:
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
        for note in resolved.dropped:
            output.log(note)
        return resolved.config


@app.command(cls=_OptionalValue)
@grouped
def adapter(surroundings: _Surroundings, skip_bad: SkipBadFlag = False) -> None:
    """Train low-bit adapters in a frozen model and write them as one artifact folder."""
    from petkit.methods.binary_adapter.config import BinaryAdapterConfig

    more = {"data.skip_bad": skip_bad or None}
    config = surroundings.resolve(BinaryAdapterConfig, **more)
    _check_output(Path(config.output), surroundings.overwrite, surroundings.resume is not None)

    from petkit.methods.binary_adapter import recipe

    work = recipe.plan if surroundings.dry_run else recipe.run
    result = _work(work, config, surroundings)
    if result is not None:
        rows = _plan_rows(result) if surroundings.dry_run else _result_rows(result, Path(config.output))
        _finish(rows, result, Path(config.output), surroundings)


@app.command(cls=_OptionalValue)
@grouped
def tagger(surroundings: _Surroundings) -> None:
    """Train a tagger of words, with a softmax or a CRF, and write it as one artifact folder."""
    from petkit.cli import tagged
    from petkit.methods.crf_tagger.config import TaggerConfig

    config = surroundings.resolve(TaggerConfig)
    _check_output(Path(config.output), surroundings.overwrite, surroundings.resume is not None)

    from petkit.methods.crf_tagger import recipe

    work = recipe.plan if surroundings.dry_run else recipe.run
    result = _work(work, config, surroundings)
    if result is not None:
        rows = tagged.plan_rows(result) if surroundings.dry_run else tagged.result_rows(result, config.output)
        _finish(rows, result, Path(config.output), surroundings)


TeacherFlag = Annotated[
    bool,
    typer.Option(
        "--teacher",
        help="Train the autoregressive teacher instead, into the folder that teacher.model names.",
    ),
]


@app.command(cls=_OptionalValue)
@grouped
def nat(surroundings: _Surroundings, teacher: TeacherFlag = False) -> None:
    """Train a translator that writes all tokens at once, or its teacher, as one artifact folder."""
    from petkit.cli import translated
    from petkit.methods.nart_crf.config import TranslatorConfig

    config = surroundings.resolve(TranslatorConfig)
    if teacher:
        config = translated.teacher_recipe(config, surroundings.folder)
    _check_output(Path(config.output), surroundings.overwrite, surroundings.resume is not None)

    from petkit.methods.nart_crf import recipe

    work = recipe.plan if surroundings.dry_run else recipe.run
    result = _work(work, config, surroundings)
    if result is not None:
        make = translated.plan_rows if surroundings.dry_run else translated.result_rows
        _finish(make(result, config.output), result, Path(config.output), surroundings)


def _work(recipe: Recipe, config: Any, surroundings: _Surroundings) -> dict[str, Any] | None:
    """Call a recipe on the device and the processes that the flags ask for; None but on the first process."""
    from petkit.training import device as devices
    from petkit.training import distributed
    from petkit.training.context import RunContext

    devices.configure(surroundings.threads, surroundings.deterministic)
    chosen = devices.resolve_device(surroundings.device)
    target, resume = Path(config.output), surroundings.resume
    checkpoint = None if resume is None else _checkpoint(resume, target)
    world = distributed.start(chosen)
    try:
        with _Bar() as bar:
            restart = resume is not None and checkpoint is None
            context = RunContext(
                target,
                chosen,
                world,
                checkpoint,
                surroundings.overwrite,
                restart,
                watch=bar.watch,
                stage=_stage,
            )
            result = recipe(config, context)
    finally:
        distributed.finish(world)
    return result if world.is_main else None


def _stage(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return output.progress(label, total, "sentences")


class _Bar:
    """A progress bar that opens with the first step, when the number of steps is known."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._advance: output.Advance | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def watch(self, report: StepReport) -> None:
        """Show one optimiser step."""
        if self._advance is None:
            before = report.step - 1
            bar = output.progress("training", report.total_steps, done=before)
            self._advance = self._stack.enter_context(bar)
        # Short, so that a bar of some length fits beside it on 80 columns.
        self._advance(1, note=f"loss {report.loss:.4f}, {report.examples_per_second:,.0f} examples/s")


def _check_output(folder: Path, overwrite: bool, resume: bool) -> None:
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


def _finish(
    rows: Sequence[tuple[str, str]], result: Mapping[str, Any], folder: Path, surroundings: _Surroundings
) -> None:
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


def _result_rows(result: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    from petkit.report.rounding import significant

    sizes, rates = result["bytes"], result.get("images_per_second") or result["examples_per_second"]
    trained, evaluated = significant(rates["train"]), significant(rates["eval"])
    return [
        ("artifact", str(folder)),
        ("status", result["status"] + (f", stopped by {result['stopped']}" if result["stopped"] else "")),
        ("test", measured(result)),
        ("steps", f"{result['steps']} of {result['total_steps']}"),
        ("bytes", f"adapter {sizes['adapter']:,}, head {sizes['head']:,}"),
        ("full model", f"{sizes['full_model_fp32']:,} bytes in float32, {sizes['ratio']:.0f} times as much"),
        ("examples/s", f"{trained} in training, {evaluated} in evaluation"),
        *([("processes", str(result["processes"]))] if result["processes"] > 1 else []),
    ]


def measured(result: Mapping[str, Any]) -> str:
    """Write an evaluation as one line.

    Args:
        result: holds `accuracy`, `interval` and `n`, or `perplexity` and `n`.

    Returns:
        Text such as `81.2% accuracy, 95 % interval 78.1% to 84.0%, n 500`.
    """
    from petkit.report.rounding import significant

    if result.get("accuracy") is None:
        perplexity = significant(result["perplexity"], 4)
        return f"perplexity {perplexity}, loss {result['loss']:.4f}, n {result['n']:,} tokens"
    low, high = result["interval"]
    return f"{result['accuracy']:.1%} accuracy, 95 % interval {low:.1%} to {high:.1%}, n {result['n']:,}"


def _plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    sizes, steps, memory, sites = plan["bytes"], plan["steps"], plan["memory_bytes"], plan["adapters"]
    examples = ", ".join(f"{count} {name}" for name, count in plan["examples"].items() if count is not None)
    total, kept = memory["total"] / 2**20, memory["activations"] / 2**20
    return [
        ("output", plan["output"]),
        ("model", f"{plan['model']['id']} (sha256 {plan['model']['sha256'][:12]})"),
        ("device", f"{plan['device']}, {plan['processes']} process(es)"),
        ("data", f"{examples}; {plan['classes']} classes"),
        ("adapters", "\n".join(sites) or "none: the head alone"),
        ("trainable", f"{plan['trainable_parameters']:,} parameters"),
        ("bytes", f"adapter {sizes['adapter']:,}, head {sizes['head']:,}, full model {sizes['ratio']:.0f} x"),
        ("steps", f"{steps['total']} ({steps['per_epoch']} an epoch, {steps['warmup']} of warm-up)"),
        ("memory", f"about {total:,.0f} MiB of tensors, {kept:,.0f} of it activations"),
    ]
