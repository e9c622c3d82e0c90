"""`petkit merge CONFIG.yaml -o OUT`: mergekit's YAML to a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from petkit.cli import common, merge_tune, output, process
from petkit.cli.default_group import app_with_default
from petkit.cli.merged_logits import checked_logits


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file in mergekit's format.")],
    folder: common.OutputOption,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of DARE's and DELLA's draws.")] = 0,
    shard_gigabytes: Annotated[
        float, typer.Option("--shard-size", metavar="GB", min=0.001, help="The most that a file holds.")
    ] = 5.0,
    check_logits: Annotated[
        bool,
        typer.Option(
            "--check-logits",
            help="Load the result and compare its logits with the merge in memory: needs that memory.",
        ),
    ] = False,
    dry_run: common.DryRunFlag = False,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Merge models into one, streamed: memory does not grow with their size."""
    # Reading, writing and hashing run beside the arithmetic.
    process.let_threads_sleep()
    with process.quick_imports():
        from petkit.artifacts.writer import check_output
        from petkit.configuration.reader import load_with_duplicates
        from petkit.merging.config import read_merge_config
        from petkit.merging.fingerprints import fingerprints
    asked = read_merge_config(config)
    check_output(folder, overwrite)
    if dry_run:
        plan = _planned(asked, seed, threads, folder)
        output.print_result(output.table(("", ""), _plan_rows(plan, folder)), plan, as_json)
        return
    # Torch takes longer to import than many a merge: the files are hashed meanwhile.
    with fingerprints({name: Path(name) for name in asked.models}) as hashes:
        with process.quick_imports():
            from petkit.merging.folders import merge_folders
            from petkit.training import device as devices

        devices.configure(threads, deterministic=False)
        result = merge_folders(
            asked,
            load_with_duplicates(config).data,
            folder,
            seed=seed,
            overwrite=overwrite,
            shard_bytes=int(shard_gigabytes * 1e9),
            progress=lambda total: output.progress("merge", total, "bytes"),
            hashes=hashes,
            check=partial(checked_logits, config=config, seed=seed, base=asked.base)
            if check_logits
            else None,
        )
    content = {**result, "folder": str(folder)}
    output.print_result(output.table(("", ""), _result_rows(result, folder)), content, as_json)


def _planned(asked: Any, seed: int, threads: int | None, folder: Path) -> dict[str, Any]:
    from contextlib import ExitStack

    from petkit.merging.estimate import as_content, estimate
    from petkit.merging.folders import open_merge
    from petkit.training import device as devices

    devices.configure(threads, deterministic=False)
    with ExitStack() as stack:
        opened = open_merge(asked, seed, stack)
        plan = opened.plan
        return {
            "status": "plan",
            "method": plan.method.name,
            "models": list(opened.models),
            "tensors": len(plan.tensors),
            "parameters": sum(one.slices.count for one in plan.tensors),
            "bytes_read": plan.read_nbytes,
            "bytes": plan.nbytes,
            "files": sorted(opened.files),
            "estimate": as_content(estimate(plan, folder)),
        }


def _plan_rows(plan: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    return [
        ("output", str(folder)),
        ("method", plan["method"]),
        ("models", "\n".join(plan["models"])),
        ("tensors", f"{plan['tensors']:,} of {plan['parameters']:,} numbers"),
        ("to read", f"{plan['bytes_read']:,} bytes"),
        ("to write", f"{plan['bytes']:,} bytes"),
        (
            "estimated time",
            _duration(plan["estimate"]["seconds"]) + " after start-up, on this machine as it is now",
        ),
        ("estimated memory", f"{plan['estimate']['peak_bytes'] / 2**20:,.0f} MiB"),
    ]


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def _result_rows(result: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    return [
        ("model", str(folder)),
        ("status", result["status"]),
        ("method", result["method"]),
        ("tensors", f"{result['tensors']:,} merged, {result['copied']:,} copied"),
        ("changed", f"{result['changed']:,} of {result['tensors']:,} tensors"),
        ("bytes", f"{result['bytes']:,}"),
        ("checked", ", ".join(result["checks"])),
    ]


app = app_with_default(command, "Merge models into one, from mergekit's YAML.", tune=merge_tune.command)
