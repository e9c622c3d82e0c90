"""`petkit merge tune CONFIG.yaml --metric COMMAND -o OUT`: weights and densities searched on a metric."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import common, output
from petkit.cli.grouped import grouped
from petkit.cli.process import SIGTERM_EXIT_CODE
from petkit.errors import GateError

if TYPE_CHECKING:
    from petkit.artifacts.run_directory import RunDirectory
    from petkit.merging.study import Trial
    from petkit.merging.tuning import Search

CURVE = "curve.png"
# Trials in the table at the end; and numbers that still get a column each.
TOP = 5
MOST_COLUMNS = 6
OPTIMISTIC = (
    "the best score is optimistic, since it was chosen on what it was measured on: measure {} on other data"
)

MetricOption = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="COMMAND",
        help="Prints the score of the folder {model}, in its last line; run without a shell.",
    ),
]


class Direction(str, Enum):
    """Of a better score."""

    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


@dataclass(frozen=True)
class Score:
    """What is searched for."""

    metric: MetricOption
    key: Annotated[
        str | None, typer.Option("--key", metavar="NAME", help="Of the score, where COMMAND prints JSON.")
    ] = None
    direction: Annotated[Direction, typer.Option("--direction", help="Of a better score.")] = (
        Direction.MAXIMIZE
    )
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="X", help="Exit with 3 when the best score is worse."),
    ] = None


@dataclass(frozen=True)
class Effort:
    """When the search ends."""

    trials: Annotated[
        int, typer.Option("--trials", metavar="N", min=1, help="Merges to try, earlier ones counted.")
    ] = 30
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", metavar="SECONDS", min=0.001, help="After which no trial begins."),
    ] = None
    trial_timeout: Annotated[
        float | None,
        typer.Option("--trial-timeout", metavar="SECONDS", min=0.001, help="For one run of COMMAND."),
    ] = None
    max_failures: Annotated[
        int, typer.Option("--max-failures", metavar="N", min=0, help="Trials in a row that may fail.")
    ] = 3


@dataclass(frozen=True)
class Ranges:
    """What is tried where CONFIG has no ranges of its own."""

    weights: Annotated[
        tuple[float, float] | None,
        typer.Option("--weights", metavar="LOW HIGH", help="Of every model, for a CONFIG without ranges."),
    ] = None
    densities: Annotated[
        tuple[float, float] | None,
        typer.Option("--densities", metavar="LOW HIGH", help="The same of densities."),
    ] = None

    def limits(self) -> dict[str, tuple[float, float]]:
        """By the name of the parameter."""
        named = (("weight", self.weights), ("density", self.densities))
        return {name: one for name, one in named if one is not None}


@grouped
def command(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="A YAML file in mergekit's format, perhaps with {search: [LOW, HIGH]}."
        ),
    ],
    folder: common.OutputOption,
    score: Score,
    effort: Effort,
    ranges: Ranges,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of what is tried, and of the merges' draws.")
    ] = 0,
    shard_gigabytes: Annotated[
        float, typer.Option("--shard-size", metavar="GB", min=0.001, help="The most that a file holds.")
    ] = 5.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in FOLDER.")] = False,
    dry_run: common.DryRunFlag = False,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Search weights and densities on a metric of your own; FOLDER/best is the best model."""
    from petkit.configuration.reader import load_yaml
    from petkit.merging.metric import read_metric
    from petkit.merging.study import check_optuna

    check_optuna()
    checked = read_metric(score.metric, score.key, effort.trial_timeout)
    data = load_yaml(config).data

    from petkit.merging.config import merge_config
    from petkit.merging.recognition import check_apart
    from petkit.merging.tuning import Budget, Search, check_search, search_space, tune
    from petkit.training import device as devices

    space = search_space(data, config.name, ranges.limits())
    check_apart(merge_config(space.filled(space.start), config.name), config, folder)
    search = Search(config.name, space, checked, score.direction.value, seed, int(shard_gigabytes * 1e9))
    devices.configure(threads, deterministic=False)
    nbytes = check_search(space, config.name, seed)
    if dry_run:
        plan = _plan(search, effort.trials, nbytes)
        output.print_result(output.table(("", ""), _plan_rows(plan, folder)), plan, as_json)
        return
    _say_space(search, data)
    with _opened(folder, overwrite, resume) as run, _stopped(folder):
        result = tune(search, Budget(effort.trials, effort.time_limit, effort.max_failures), run)
        faults = _gate(search, result, score.min_score, folder)
        tried = _read_trials(folder)
        _draw(search, tried, folder)
    _print(search, result, tried, folder, as_json)
    output.warn(OPTIMISTIC.format(folder / "best"))
    if faults:
        raise GateError(faults)


@contextmanager
def _opened(folder: Path, overwrite: bool, resume: bool) -> Iterator[RunDirectory]:
    from petkit.artifacts.run_directory import open_run

    if resume and not folder.exists():
        output.log(f"{folder} does not exist: there is nothing to resume, the search begins")
    with open_run(folder, overwrite, resume) as run:
        yield run


@contextmanager
def _stopped(folder: Path) -> Iterator[None]:
    """Say where to go on, when Ctrl-C or SIGTERM ends the search."""
    from petkit.training.signals import stop_error

    kept = f"the trials in {folder}"
    try:
        yield
    except KeyboardInterrupt:
        raise stop_error(signal.SIGINT, kept) from None
    except SystemExit as stop:
        if stop.code != SIGTERM_EXIT_CODE:
            raise
        raise stop_error(signal.SIGTERM, kept) from None


def _say_space(search: Search, data: Mapping[str, Any]) -> None:
    ranges = search.space.ranges
    listed = ", ".join(f"{one.name} [{one.low:g}, {one.high:g}]" for one in ranges)
    why = "" if search.space.data == data else f", since {search.name} has no ranges"
    output.log(f"searching {len(ranges)} number{'s' * (len(ranges) > 1)}{why}: {listed}")


def _plan(search: Search, trials: int, nbytes: int) -> dict[str, Any]:
    ranges = search.space.ranges
    return {
        "status": "plan",
        "method": search.space.data["merge_method"],
        "metric": search.metric.text,
        "direction": search.direction,
        "trials": trials,
        "ranges": {one.name: [one.low, one.high] for one in ranges},
        "start": search.space.start,
        "bytes": nbytes,
    }


def _plan_rows(plan: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    start = plan["start"]
    ranges = [
        f"{name} from {low:g} to {high:g}, first {start[name]:g}"
        for name, (low, high) in plan["ranges"].items()
    ]
    return [
        ("output", str(folder)),
        ("method", plan["method"]),
        ("searched", "\n".join(ranges)),
        ("metric", f"{plan['direction']} {plan['metric']}"),
        ("trials", f"{plan['trials']:,}"),
        ("to write", f"{plan['bytes']:,} bytes a trial, two models at a time at most"),
    ]


def _gate(search: Search, result: dict[str, Any], min_score: float | None, folder: Path) -> str | None:
    """Compare with `--min-score`, and leave the verdict in result.json."""
    from petkit.artifacts import write_json

    best = result["best"]["score"]
    if min_score is None or not search.better(min_score, best):
        return None
    result["status"] = "gate_failed"
    write_json(folder / "result.json", result)
    least = "at least" if search.direction == "maximize" else "at most"
    return f"the best score must be {least} {min_score:g} (--min-score), got {best:.6g}"


def _read_trials(folder: Path) -> list[dict[str, Any]]:
    from petkit.report.plots import read_metrics

    return read_metrics(folder / "trials.jsonl")


def _draw(search: Search, tried: Sequence[Mapping[str, Any]], folder: Path) -> None:
    from petkit.report.search import search_curve

    search_curve(tried, search.direction == "maximize", folder / CURVE)


def _print(
    search: Search, result: Mapping[str, Any], tried: Sequence[Mapping[str, Any]], folder: Path, as_json: bool
) -> None:
    baseline, best = result["baseline"]["score"], result["best"]["score"]
    rows = [
        ("model", str(folder / "best")),
        ("trials", f"{result['trials']:,}, {result['failed']:,} failed" + _stop_words(result["stopped"])),
        ("baseline", "failed" if baseline is None else f"{baseline:.6g} (trial 0, {_start_words(search)})"),
        ("best", f"{best:.6g} (trial {result['best']['trial']})" + _difference(baseline, best)),
        ("again with", f"petkit merge {folder / 'best.yml'} -o MODEL" + _seed_words(search)),
    ]
    shown = output.stacked(_top(search, tried), "", output.table(("", ""), rows))
    output.print_result(shown, {**result, "folder": str(folder)}, as_json)


def _top(search: Search, tried: Sequence[Mapping[str, Any]]) -> Any:
    from petkit.merging.study import Trial

    known = [Trial(*(one[name] for name in ("trial", "parameters", "score", "seconds"))) for one in tried]
    names = [one.name for one in search.space.ranges]
    columns = names if len(names) <= MOST_COLUMNS else ["numbers"]
    return output.table(
        ("trial", "score", *columns, "seconds"), [_row(one, names) for one in search.ranked(known)[:TOP]]
    )


def _row(trial: Trial, names: Sequence[str]) -> tuple[object, ...]:
    values = [trial.parameters[name] for name in names]
    if len(names) > MOST_COLUMNS:
        joined = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))
        return (trial.trial, trial.score, joined, trial.seconds)
    return (trial.trial, trial.score, *values, trial.seconds)


def _stop_words(reason: str | None) -> str:
    return "; stopped by --time-limit" if reason == "time_limit" else ""


def _start_words(search: Search) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in search.space.start.items())


def _seed_words(search: Search) -> str:
    return f" --seed {search.seed}" if search.seed else ""


def _difference(baseline: float | None, best: float) -> str:
    if baseline is None:
        return ""
    return ", no trial beat the baseline" if best == baseline else f", {best - baseline:+.4g}"
