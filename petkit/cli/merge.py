"""`petkit merge CONFIG.yaml -o OUT`: mergekit's YAML to a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from petkit.cli import common, output
from petkit.cli.default_group import app_with_default
from petkit.cli.merge_analyze import analyze


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file in mergekit's format.")],
    folder: common.OutputOption,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of DARE's and DELLA's draws.")] = 0,
    shard_gigabytes: Annotated[
        float, typer.Option("--shard-size", metavar="GB", min=0.001, help="The most that a file holds.")
    ] = 5.0,
    dry_run: common.DryRunFlag = False,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Merge models into one, streamed: memory does not grow with their size."""
    from petkit.artifacts.writer import check_output
    from petkit.configuration.reader import load_with_duplicates
    from petkit.merging.config import read_merge_config

    asked = read_merge_config(config)
    check_output(folder, overwrite)

    from petkit.merging.folders import merge_folders
    from petkit.training import device as devices

    devices.configure(threads, deterministic=False)
    if dry_run:
        plan = _planned(asked, seed)
        output.print_result(output.table(("", ""), _plan_rows(plan, folder)), plan, as_json)
        return
    result = merge_folders(
        asked,
        load_with_duplicates(config).data,
        folder,
        seed=seed,
        overwrite=overwrite,
        shard_bytes=int(shard_gigabytes * 1e9),
        progress=lambda total: output.progress("merge", total, "bytes"),
    )
    content = {**result, "folder": str(folder)}
    output.print_result(output.table(("", ""), _result_rows(result, folder)), content, as_json)


def _planned(asked: Any, seed: int) -> dict[str, Any]:
    from contextlib import ExitStack

    from petkit.merging.folders import open_merge

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
        }


def _plan_rows(plan: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    return [
        ("output", str(folder)),
        ("method", plan["method"]),
        ("models", "\n".join(plan["models"])),
        ("tensors", f"{plan['tensors']:,} of {plan['parameters']:,} numbers"),
        ("to read", f"{plan['bytes_read']:,} bytes"),
        ("to write", f"{plan['bytes']:,} bytes"),
    ]


def _result_rows(result: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    return [
        ("model", str(folder)),
        ("status", result["status"]),
        ("method", result["method"]),
        ("tensors", f"{result['tensors']:,} merged, {result['copied']:,} copied"),
        ("changed", f"{result['changed']:,} of {result['tensors']:,} tensors"),
        ("bytes", f"{result['bytes']:,}"),
    ]


app = app_with_default(command, "Merge models into one, from mergekit's YAML.", analyze=analyze)
