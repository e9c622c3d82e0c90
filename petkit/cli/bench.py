"""`petkit bench ops|adapters|serving|training`: speed, memory and accuracy against peers."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import output
from petkit.cli.common import DeviceOption, DryRunFlag, JsonFlag, ThreadsOption
from petkit.errors import ConfigError

if TYPE_CHECKING:
    from petkit.benchmarks.harness import Outcome
    from petkit.report.tables import Table

app = typer.Typer(help="Measure speed, memory and accuracy against other ways, in one process.")

SecondsOption = Annotated[
    float, typer.Option("--seconds", metavar="S", min=0.1, help="Time to spend on each measurement.")
]
ThreadList = Annotated[
    list[int] | None,
    typer.Option(
        "--threads", metavar="N", min=1, help="Thread count to measure at; may be repeated. Default: 1 and 2."
    ),
]


def _writable(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written before hours are spent on what it is for."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is no folder"
        raise ConfigError(f"--save {path} must be a file to write, it {what}")
    return path


def _counts(threads: list[int] | None) -> list[int]:
    """The thread counts to measure at; more than there are cores measures their quarrel."""
    available = os.cpu_count() or 1
    for count in threads or ():
        if count > available:
            output.warn(f"--threads {count} is more than the {available} cores of this machine")
    return threads or [1, 2]


SaveOption = Annotated[
    Path | None,
    typer.Option(
        "--save", metavar="FILE", help="Write the JSON object to this file as well.", callback=_writable
    ),
]


@app.command()
def ops(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[OP]...", help="Groups to run. Default: all.")
    ] = None,
    threads: ThreadList = None,
    seconds: SecondsOption = 3.0,
    save: SaveOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Time every op against its peers: ratios, and the fraction of the measured memory bandwidth."""
    from petkit.benchmarks import harness
    from petkit.benchmarks.op_cases import GROUPS
    from petkit.report.tables import Table

    unknown = sorted(set(names or ()) - set(GROUPS))
    if unknown:
        raise ConfigError(f"ops must be among {', '.join(GROUPS)}, got {', '.join(unknown)}")
    counts = _counts(threads)
    bandwidth = {count: harness.read_bandwidth(count) for count in counts}
    cases = [case for name in names or GROUPS for case in GROUPS[name]()]
    outcomes = []
    with output.progress("bench ops", len(cases) * len(counts), "cases") as advance:
        for case in cases:
            for count in counts:
                outcomes.append(harness.measure(case, count, bandwidth[count], seconds))
                advance(note=case.name)
    environment = harness.environment(bandwidth)
    payload = {
        "command": _command("ops", *(names or ()), **{"--threads": threads}),
        "environment": environment,
        "outcomes": [outcome.to_dict() for outcome in outcomes],
    }
    note = f"kernels: {environment['kernels']}"
    records = [record for outcome in outcomes for record in _records(outcome)]
    _show([Table.from_records(records, note=note)], payload, save, as_json)


def _records(outcome: Outcome) -> list[dict[str, Any]]:
    """A row for each peer; the goal stands beside what it is for."""
    share, least = outcome.bandwidth_fraction, outcome.goals.get("bandwidth")
    rows = []
    for peer in outcome.peers:
        ratio, goal = outcome.ratio(peer), outcome.goals.get(peer)
        missed = (goal is not None and ratio < goal) or (
            share is not None and least is not None and share < least
        )
        wanted = [] if goal is None else [f"{goal:g}x"]
        wanted += [] if least is None else [f"{least:.0%} of bandwidth"]
        added, theirs = outcome.memory.get("petkit"), outcome.memory.get(peer)
        if outcome.memory_limit is not None:
            wanted.append(f"{outcome.memory_limit >> 20} MiB")
            missed |= outcome.exceeds_memory()
        rows.append(
            {
                "case": outcome.case,
                "threads": outcome.threads,
                "peer": peer,
                "times faster": ratio,
                "of bandwidth": None if share is None else f"{share:.1%}",
                "added MiB, peer's": None
                if added is None or theirs is None
                else f"{added / 2**20:.1f}, {theirs / 2**20:.0f}",
                "goal": (", ".join(wanted) + (" MISSED" if missed else "")) or None,
            }
        )
    return rows


@app.command()
def serving(
    folder: Annotated[Path, typer.Option("--folder", help="Keeps the adapters between runs.")] = Path(
        "runs/bench-serving"
    ),
    adapters: Annotated[
        int, typer.Option("--adapters", metavar="N", min=1, help="Adapters resident.")
    ] = 1000,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Images in the mixed batch.")
    ] = 32,
    threads: ThreadList = None,
    seconds: SecondsOption = 10.0,
    save: SaveOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run one mixed batch over many resident adapters, against peft's mixed batch."""
    from petkit.benchmarks import serving as bench

    folder.mkdir(parents=True, exist_ok=True)
    payload = bench.run(folder, adapters, batch, _counts(threads), seconds)
    flags = {"--adapters": adapters, "--batch": batch, "--threads": threads}
    facts = {"command": _command("serving", **flags), "environment": _environment()}
    _show([bench.table(payload)], facts | payload, save, as_json)


@app.command()
def training(
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Images per step.")] = 32,
    threads: ThreadList = None,
    seconds: SecondsOption = 30.0,
    save: SaveOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Time a training step with 1-bit adapters against one with 32-bit adapters."""
    from petkit.benchmarks import training as bench

    payload = bench.run(batch, _counts(threads), seconds)
    flags = {"--batch": batch, "--threads": threads}
    facts = {"command": _command("training", **flags), "environment": _environment()}
    _show([bench.table(payload)], facts | payload, save, as_json)


@app.command()
def adapters(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="A shipped experiment or a YAML file.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Keeps finished runs: start it again to go on. Default: runs/EXPERIMENT.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", min=1, help="Runs per variant.")
    ] = None,
    dry_run: DryRunFlag = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    save: SaveOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Train and compare variants of a recipe over seeds: table, plots and one HTML page.

    `petkit recipes ls` describes the shipped experiments: demo, constant-bytes, quantization, noise.
    `petkit recipes cp noise my.yaml` starts one of your own.
    """
    from petkit.benchmarks import comparison, page
    from petkit.benchmarks.experiment import load_experiment
    from petkit.benchmarks.folder import check_folder, mark_folder, title
    from petkit.training.context import RunContext
    from petkit.training.device import configure, resolve_device

    config, recipe = load_experiment(experiment)
    if seeds is not None:
        config = config.model_copy(update={"seeds": seeds})
    name = Path(experiment).stem
    folder = folder or Path("runs") / name
    check_folder(folder, name, config)
    configure(threads, deterministic=False)
    chosen = resolve_device(device)
    if dry_run:
        _show_plan(comparison.plan(config, recipe, folder), recipe, as_json)
        return
    mark_folder(folder, name, config)

    def context(run: Path) -> RunContext:
        return RunContext(run, chosen, overwrite=True)

    with output.progress(name, len(config.variants) * config.seeds, "runs") as advance:

        def done(run: str) -> None:
            advance(note=run)

        rows = comparison.run_experiment(config, recipe, folder, context, done)
    flags = {"--output": str(folder), "--seeds": seeds, "--threads": threads}
    if device != "auto":
        flags["--device"] = device
    command = _command("adapters", experiment, **flags)
    facts = {"command": command, "environment": _environment(), "settings": config.model_dump(mode="json")}
    report = page.write_results(folder, title(name), rows, facts, config)
    _show(comparison.tables(rows), json.loads((folder / "results.json").read_text()), save, as_json)
    output.log(f"report: {report}")


def _show_plan(runs: Sequence[dict[str, Any]], recipe: Path, as_json: bool) -> None:
    rows = [
        (run["folder"], "finished" if run["finished"] else "to do", ", ".join(run["changes"])) for run in runs
    ]
    table = output.table(("run", "state", f"changes of {recipe.stem}"), rows)
    output.print_result(table, {"recipe": str(recipe), "runs": runs}, as_json)


def _command(*words: str, **flags: str | int | list[int] | None) -> str:
    """The command line that repeats a measurement; flags that were not given are left out."""
    line = ["petkit", "bench", *words]
    for flag, given in flags.items():
        values = given if isinstance(given, list) else [] if given is None else [given]
        line += [word for value in values for word in (flag, str(value))]
    return shlex.join(line)


def _environment() -> dict[str, Any]:
    from petkit.benchmarks.harness import environment

    return environment({})


def _show(tables: Sequence[Table], payload: dict[str, Any], save: Path | None, as_json: bool) -> None:
    import sys

    from petkit.artifacts.files import write_json

    if save is not None:
        write_json(save, payload)
    text = "\n\n".join(table.render(tty=sys.stdout.isatty()) for table in tables)
    output.print_result(text, payload, as_json)
