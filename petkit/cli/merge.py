"""`petkit merge CONFIG.yaml -o OUT`: mergekit's YAML to a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import common, merge_adapters, merge_tune, output, process
from petkit.cli.default_group import app_with_default
from petkit.cli.merge_analyze import analyze
from petkit.cli.merged_logits import checked_logits

if TYPE_CHECKING:
    from petkit.artifacts import Check
    from petkit.merging.config import MergeConfig

SHARD_GIGABYTES = 5.0


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file in mergekit's format.")],
    folder: common.OutputOption,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, help="Of DARE's and DELLA's draws (default 0)."),
    ] = None,
    shard_gigabytes: Annotated[
        float | None,
        typer.Option(
            "--shard-size", metavar="GB", min=0.001, help="The most that a file holds (default 5); models."
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="N", min=1, help="Of the result, by SVD (default: exact); adapters."),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option("--bits", metavar="N", help="Quantise the result to 1, 2, 4 or 8 bits; adapters."),
    ] = None,
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
    """Merge models into one, streamed: memory does not grow with their size. Or adapters into an adapter."""
    # Reading, writing and hashing run beside the arithmetic.
    process.let_threads_sleep()
    with process.quick_imports():
        from petkit.artifacts.writer import check_output
        from petkit.configuration.reader import load_with_duplicates
        from petkit.merging.config import read_merge_config
        from petkit.merging.recognition import check_apart, lists_adapters
    asked = read_merge_config(config)
    check_apart(asked, config, folder)
    check_output(folder, overwrite)
    read_as = load_with_duplicates(config).data
    if lists_adapters(asked):
        wanted = merge_adapters.Wanted(
            folder, rank, bits, seed, shard_gigabytes, check_logits, threads, dry_run, overwrite, as_json
        )
        merge_adapters.run(asked, read_as, wanted)
        return
    merge_adapters.refuse(rank, bits)
    if dry_run:
        plan = _planned(asked, seed or 0, threads, folder)
        output.print_result(output.table(("", ""), _plan_rows(plan, folder)), plan, as_json)
        return
    size = int((shard_gigabytes or SHARD_GIGABYTES) * 1e9)
    look = partial(checked_logits, config=config, seed=seed or 0, base=asked.base) if check_logits else None
    result = _merged(asked, read_as, folder, seed or 0, overwrite, size, threads, look)
    content = {**result, "folder": str(folder)}
    output.print_result(output.table(("", ""), _result_rows(result, folder)), content, as_json)


def _merged(
    asked: MergeConfig,
    read_as: Mapping[str, Any],
    folder: Path,
    seed: int,
    overwrite: bool,
    shard_bytes: int,
    threads: int | None,
    check: Callable[[Path], Check] | None,
) -> dict[str, Any]:
    from petkit.merging.fingerprints import fingerprints
    from petkit.merging.recognition import folders_of

    # Torch takes longer to import than many a merge: the files are hashed meanwhile.
    with fingerprints(folders_of(asked)) as hashes:
        with process.quick_imports():
            from petkit.merging.folders import merge_folders
            from petkit.training import device as devices

        devices.configure(threads, deterministic=False)
        return merge_folders(
            asked,
            read_as,
            folder,
            seed=seed,
            overwrite=overwrite,
            shard_bytes=shard_bytes,
            progress=lambda total: output.progress("merge", total, "bytes"),
            hashes=hashes,
            check=check,
        )


def _planned(asked: MergeConfig, seed: int, threads: int | None, folder: Path) -> dict[str, Any]:
    from contextlib import ExitStack

    from petkit.merging.estimate import as_content, estimate
    from petkit.merging.folders import check_space, open_merge
    from petkit.training import device as devices

    devices.configure(threads, deterministic=False)
    with ExitStack() as stack:
        opened = open_merge(asked, seed, stack)
        plan = opened.plan
        check_space(plan, folder)
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


app = app_with_default(
    command, "Merge models into one, from mergekit's YAML.", analyze=analyze, tune=merge_tune.command
)
