"""Model folders to a model folder: planned, streamed, read back and checked. Begin at `merge_folders`."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from petkit.artifacts import Check, atomic_write, staged_artifact, step, write_checks, write_json
from petkit.artifacts.card import lay_out
from petkit.artifacts.reader import CONFIG, MANIFEST
from petkit.artifacts.whole_model import MergedManifest, weights_sha256
from petkit.configuration import dump_yaml
from petkit.errors import GateError, PetkitError
from petkit.merging.adapted import AdaptedModel, adapter_checks, open_source
from petkit.merging.bases import Hashes
from petkit.merging.companions import companions, tokenizer_folder, unlike_configs
from petkit.merging.config import MergeConfig
from petkit.merging.fingerprints import Fingerprints
from petkit.merging.output import open_output
from petkit.merging.plan import Plan, plan_merge
from petkit.merging.slices import PIECE, Buffers
from petkit.merging.sources import ModelFolder, open_model
from petkit.merging.streaming import Outcome, carry_out
from petkit.ops.finite_rows import finite_rows

log = logging.getLogger(__name__)

COMMAND = "merge"
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Opened:
    """A plan over models that are open."""

    plan: Plan
    models: Mapping[str, ModelFolder | AdaptedModel]
    files: Mapping[str, bytes]
    """What goes beside the weights."""


def open_merge(config: MergeConfig, seed: int, stack: ExitStack) -> Opened:
    """Open every model and plan the merge.

    Args:
        config: what is asked for.
        seed: of methods that draw.
        stack: closes the models.

    Returns:
        The plan, the models and the files beside the weights.

    Raises:
        PetkitError: a model cannot be read, models do not fit each other, or a parameter is wrong.
    """
    hashes: Hashes = {}
    models = {name: stack.enter_context(open_source(name, hashes)) for name in config.models}
    plan = plan_merge(config, models, seed, Buffers())
    folders = [models[name].folder for name in config.models]
    for message in unlike_configs(folders):
        log.warning("%s", message)
    tokenizer = tokenizer_folder(config.tokenizer_source, folders[0], folders)
    files = companions(folders[0], tokenizer, config.dtype, plan.layers, config.chat_template)
    return Opened(plan, models, files)


def check_space(plan: Plan, output: Path) -> None:
    """Refuse a disk that has no room for the result.

    Raises:
        PetkitError: says how much is needed and how much is free.
    """
    place = next(one for one in (output.absolute(), *output.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    if plan.nbytes > free:
        raise PetkitError(f"{output} needs {plan.nbytes:,} bytes on its disk, {free:,} are free there")


def merge_folders(
    config: MergeConfig,
    read_as: Mapping[str, Any],
    output: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    shard_bytes: int,
    progress: Callable[[int], Any],
    hashes: Fingerprints | None = None,
    check: Callable[[Path], Check] | None = None,
) -> dict[str, Any]:
    """Merge model folders.

    Args:
        config: what is asked for.
        read_as: the configuration's data, for the record.
        output: folder to write.
        seed: of methods that draw.
        overwrite: replace what petkit wrote there.
        shard_bytes: the most that a file of the result holds.
        progress: makes a context manager of a function that is told how many more bytes are written.
        hashes: of the models' files, for the lineage; None leaves them out.
        check: a further look at the written folder, before it gets its name.

    Returns:
        The content of result.json.

    Raises:
        GateError: the result equals its base, or reads back as something else.
        PetkitError: whatever else stops the merge, by kind; nothing is left under the output's name.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        opened = open_merge(config, seed, stack)
        check_space(opened.plan, output)
        with staged_artifact(output, overwrite) as stage:
            stage.mkdir()
            with (
                open_output(stage, opened.plan.tensors, shard_bytes) as writer,
                progress(opened.plan.nbytes) as advance,
            ):
                outcome = carry_out(opened.plan, writer, _told(advance, opened.plan.nbytes, hashes))
                digest = writer.finish()
                # While the disk takes what is left.
                checks = [*_differs(config, outcome), *_reads_back(stage, opened.plan, digest)]
            for name, content in opened.files.items():
                atomic_write(stage / name, content)
            checks += [*adapter_checks(opened.models), *([check(stage)] if check else [])]
            result = _result(config, opened, outcome, checks, seed, started)
            inputs = hashes.result() if hashes else {}
            # The configuration as it was read: what `petkit merge` makes the same of again.
            settings = dump_yaml(read_as).encode()
            atomic_write(stage / CONFIG, settings)
            manifest = MergedManifest(
                method=config.method,
                base=config.base,
                models=tuple(result["models"]),
                lineage=(step(COMMAND, read_as, inputs),),
                merge=dict(read_as),
                seed=seed,
                weights_sha256=digest,
                files=_hashes({**opened.files, CONFIG: settings}),
            )
            _describe(stage, manifest, result)
            write_checks(stage, checks)
            write_json(stage / "result.json", result)
    for one in checks:
        if not one.ok:
            raise GateError(f"{one.name}: {one.detail} (see checks.json in {output})")
    return result


def _told(advance: Advance, total: int, hashes: Fingerprints | None) -> Advance:
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        advance(count)
        if hashes is not None:
            hashes.merged(done / total)

    return told


def _differs(config: MergeConfig, outcome: Outcome) -> Iterator[Check]:
    if config.base is None and all(len(one.sources) == 1 for one in config.slices):
        # Layers that are stacked anew are those of their models.
        return
    other = "its base" if config.base else "its first model"
    detail = f"{outcome.changed} of {outcome.tensors} merged tensors differ from {other}"
    yield Check(f"differs from {other}", outcome.changed > 0, detail)


def _reads_back(stage: Path, plan: Plan, merged: str) -> Iterator[Check]:
    """Open the result as any other model: whole, finite, and byte for byte what was merged in memory."""
    with ThreadPoolExecutor(1) as hashing:
        hashed = hashing.submit(weights_sha256, stage)
        yield _is_whole(stage, plan)
        found = hashed.result()
    detail = f"sha256 {found} read from the disk, {merged} of the numbers in memory"
    yield Check("is what was merged", found == merged, detail)


def _is_whole(stage: Path, plan: Plan) -> Check:
    name = "reads back"
    with open_model(stage) as model:
        for one in plan.tensors:
            entry = model.entries.get(one.name)
            if entry is None or entry.shape != one.slices.shape or entry.dtype != one.dtype:
                return Check(name, False, f"{one.name} is {entry}, not {one.slices.shape} {one.dtype}")
            if one.is_merged and not _is_finite(model, one.name):
                return Check(name, False, f"{one.name} holds nan or inf")
    return Check(name, True, f"{len(plan.tensors)} tensors, whole and finite")


def _is_finite(model: ModelFolder, tensor: str) -> bool:
    entry = model.entries[tensor]
    buffer = torch.empty(min(PIECE, entry.count), dtype=entry.dtype)
    for start in range(0, entry.count, PIECE):
        piece = buffer[: min(PIECE, entry.count - start)]
        model.read(tensor, start, piece)
        if not bool(finite_rows(piece[None]).all()):
            return False
    return True


def _result(
    config: MergeConfig, opened: Opened, outcome: Outcome, checks: Sequence[Check], seed: int, started: float
) -> dict[str, Any]:
    plan, models = opened.plan, opened.models
    return {
        "status": "completed" if all(check.ok for check in checks) else "gate_failed",
        "method": config.method,
        "base": config.base,
        "models": [source.model for one in config.slices for source in one.sources],
        "seed": seed,
        **asdict(outcome),
        "parameters": sum(one.slices.count for one in plan.tensors),
        "bytes": plan.nbytes,
        "checks": {check.name: check.ok for check in checks},
        "left_out": {
            name: list(one.left_out) for name, one in models.items() if isinstance(one, AdaptedModel)
        },
        "seconds": time.perf_counter() - started,
    }


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}


def _describe(stage: Path, manifest: MergedManifest, result: Mapping[str, Any]) -> None:
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    atomic_write(stage / MANIFEST, text.encode())
    rows = [
        ("method", manifest.method),
        ("base", manifest.base or "none"),
        ("models", ", ".join(result["models"])),
        ("parameters", f"{result['parameters']:,}"),
        ("tensors that changed", f"{result['changed']} of {result['tensors']}"),
        ("seed", str(manifest.seed)),
    ]
    about = "Models merged by petkit; transformers loads this folder as it is."
    card = lay_out(
        f"Merge, {manifest.method}",
        about,
        rows,
        None,
        manifest.lineage,
        ("petkit inspect FOLDER", "petkit verify FOLDER"),
    )
    atomic_write(stage / "README.md", card.encode())
