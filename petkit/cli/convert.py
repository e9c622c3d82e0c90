"""`petkit convert PATH --from peft|petl-vit -o OUT`: another tool's adapter becomes an artifact."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petkit.cli import output
from petkit.cli.common import DANGER_PANEL, JsonFlag, OutputOption, OverwriteFlag
from petkit.errors import ConfigError, InputError, PetkitError

if TYPE_CHECKING:
    from petkit.artifacts.importing import Imported
    from petkit.models.loaded import LoadedModel


# What stands for a base that the folder does not name.
UNKNOWN = "unknown"


class TaskName(str, Enum):
    """What a model is for."""

    image_classification = "image_classification"
    text_classification = "text_classification"
    causal_lm = "causal_lm"


class Source(str, Enum):
    """Formats that can be read."""

    peft = "peft"
    petl_vit = "petl-vit"


def command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A PEFT folder, or a PETL-ViT .bin file.")],
    source: Annotated[Source, typer.Option("--from", help="The format of PATH.")],
    out: OutputOption,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="petl-vit: its YAML; default: beside PATH."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="Base model, its weight file, or its sha256; the hash is recorded.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help="Weight file of --base MODEL, where it is not published."
        ),
    ] = None,
    task: Annotated[
        TaskName | None,
        typer.Option("--task", help="peft: what the model is for, where the folder does not say it."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="A,B,...", help="Class names in the order of the head's rows."),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="peft: read adapter_model.bin in a child process, weights only.",
            rich_help_panel=DANGER_PANEL,
        ),
    ] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> int:
    """Read another tool's adapter into an artifact, and check that nothing of it was lost."""
    from petkit.artifacts.checks import checks_json, exit_code
    from petkit.artifacts.importing import write_imported
    from petkit.artifacts.writer import check_output

    check_output(out, overwrite)
    read = _named(_read(path, source, config, allow_pickle, task), classes)
    imported = _with_base(read, base, weights, named=classes is not None)
    artifact, checks = write_imported(imported, out, overwrite)
    for check in checks:
        output.log(f"{check.name}: {'ok' if check.ok else 'FAILED'}, {check.detail}")
    matrices = len(artifact.packed) or sum(name.endswith(".weight") for name in artifact.raw_dense)
    payload = {"artifact": str(out), "bytes": artifact.nbytes, "matrices": matrices, **checks_json(checks)}
    result = f"wrote {out}: {matrices} matrices, {artifact.nbytes:,} bytes, for {artifact.manifest.base.id}"
    output.print_result(result, payload, as_json)
    return exit_code(checks)


def _read(
    path: Path, source: Source, config: Path | None, allow_pickle: bool, task: TaskName | None
) -> Imported:
    from petkit.artifacts.importing import import_peft, import_petl_vit

    if source is Source.petl_vit:
        if allow_pickle:
            raise ConfigError("--allow-pickle has no effect with --from petl-vit, whose files are no pickles")
        if task is not None:
            raise ConfigError("--task has no effect with --from petl-vit, whose files are image classifiers")
        return import_petl_vit(path, config)
    if config is not None:
        raise ConfigError("--config has no effect with --from peft, which has its adapter_config.json")
    return import_peft(path, allow_pickle, task.value if task else None)


def _with_base(imported: Imported, base: str | None, weights: Path | None, named: bool) -> Imported:
    from petkit.artifacts.importing import with_base
    from petkit.cli.base_model import SHA256, class_names, load_base
    from petkit.models.loading import relocated

    manifest = imported.manifest
    if manifest.task is None:
        names = ", ".join(task.value for task in TaskName)
        output.warn(f"the folder does not say what the model is for: --task records one of {names}")
    if weights is not None and (base is None or SHA256.fullmatch(base)):
        raise ConfigError("--weights needs --base MODEL: a file does not tell which model its weights are of")
    if base is None:
        _warn_of_base(manifest.base.id)
        return imported
    if SHA256.fullmatch(base):
        return with_base(imported, None, base.lower())
    if manifest.task is None:
        raise ConfigError("--base MODEL needs --task: how a model is loaded depends on what it is for")
    section = relocated(manifest.model, base)
    if section["name"] == UNKNOWN:
        raise ConfigError(f"the folder does not name its model: give --base MODEL and --weights {base}")
    if weights is not None:
        section["weights"] = str(weights)
    count = len(manifest.task.classes)
    loaded = load_base(base, section, manifest.task.type, count)
    found = () if named else class_names(loaded, manifest.task.classes)
    _check_fits(imported, loaded, base)
    return with_base(imported, section, loaded.base_sha256, found)


def _check_fits(imported: Imported, loaded: LoadedModel, base: str) -> None:
    """Refuse a base into which the adapter does not go, before its hash is recorded."""
    import torch

    from petkit.models.config import AdapterConfig
    from petkit.models.inserts import insert, load_packed
    from petkit.models.loading import check_filled

    dense = {name: torch.as_tensor(array) for name, array in imported.dense.items()}
    try:
        check_filled(dense, "the adapter", loaded)
        insert(loaded.model, AdapterConfig(**imported.manifest.adapter))
        load_packed(loaded.model, imported.packed, dense, imported.manifest.scaling)
    except PetkitError as error:
        raise InputError(f"--base {base} is not the model that the adapter was made for: {error}") from error


def _named(imported: Imported, names: str | None) -> Imported:
    """The adapter with the class names of a flag."""
    if names is None:
        return imported
    task = imported.manifest.task
    given, count = tuple(name.strip() for name in names.split(",")), len(task.classes) if task else 0
    if task is None or len(given) != count or len(set(given)) != count or "" in given:
        raise ConfigError(f"--classes must be {count} different names with commas between, got {names!r:.60}")
    manifest = imported.manifest.model_copy(update={"task": task.model_copy(update={"classes": given})})
    return replace(imported, manifest=manifest)


def _warn_of_base(name: str) -> None:
    if name == UNKNOWN:
        output.warn(
            "the folder does not name its model: --base MODEL records it; until then it cannot be used"
        )
    else:
        output.warn(f"the hash of the base {name} is unknown; --base MODEL records it")
