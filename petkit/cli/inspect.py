"""`petkit inspect ARTIFACT`: what it is, what it belongs to, what it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petkit.cli import output
from petkit.cli.common import JsonFlag

if TYPE_CHECKING:
    from rich.console import RenderableType

    from petkit.artifacts import Artifact
    from petkit.artifacts.summary import Summary

COLUMNS = ("module", "shape", "bits", "bytes", "shift", "scale")


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what an artifact holds: its base, its history, and every matrix with its bits and bytes."""
    from petkit.artifacts.summary import describe_foreign, summarize, summary_json
    from petkit.artifacts.tagger import is_tagger, read_tagger
    from petkit.artifacts.translator import is_translator, read_translator
    from petkit.artifacts.whole_model import is_whole
    from petkit.cli import tagged, translated
    from petkit.methods.binary_adapter.recorded import read_checked

    if is_tagger(artifact):
        tagger = read_tagger(artifact)
        summary = summarize(tagger)
        page = _page(tagged.facts(tagger), summary)
        output.print_result(page, summary_json(tagger, summary), as_json)
        return
    if is_translator(artifact):
        translator = read_translator(artifact)
        summary = summarize(translator)
        page = _page(translated.facts(translator), summary)
        output.print_result(page, summary_json(translator, summary), as_json)
        return
    if is_whole(artifact):
        _print_whole(artifact, as_json)
        return
    foreign = describe_foreign(artifact)
    if foreign is not None:
        kind, sentence = foreign
        output.print_result(sentence, {"kind": kind, "path": str(artifact), "detail": sentence}, as_json)
        return
    content = read_checked(artifact)
    summary = summarize(content)
    output.print_result(_page(_facts(content), summary), summary_json(content, summary), as_json)


def _print_whole(artifact: Path, as_json: bool) -> None:
    """A whole model: what it was made of; its tensors are an ordinary model's, and many."""
    from math import prod

    from petkit.artifacts.whole_model import read_whole, shards_of, whole_tensors

    manifest, tensors = read_whole(artifact), whole_tensors(artifact)
    numbers = sum(prod(place.shape) for place in tensors.values())
    nbytes = sum(place.end - place.begin for place in tensors.values())
    dtypes = ", ".join(sorted({place.dtype for place in tensors.values()}))
    content = manifest.model_dump(mode="json")
    version = content.pop("schema_version")
    lines = [
        f"{artifact}: {manifest.kind}, schema version {manifest.schema_version}",
        *(f"{name:<8} {value}" for name, value in manifest.facts()),
        f"tensors  {len(tensors):,} of {numbers:,} numbers ({dtypes}), {nbytes:,} bytes",
        f"files    {', '.join(shards_of(artifact))}",
        *(f"lineage  petkit {step.command} ({step.version}, {step.created})" for step in manifest.lineage),
    ]
    more = {"tensors": len(tensors), "parameters": numbers, "bytes": nbytes}
    payload = {"folder": str(artifact), "artifact_schema_version": version, **content, **more}
    output.print_result("\n".join(lines), payload, as_json)


def _page(lines: Sequence[str], summary: Summary) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    rows = [
        (one.name, "x".join(map(str, one.shape)), one.bits, one.nbytes, one.shift, one.scale)
        for one in summary.modules
    ]
    facts, sizes = ("\n".join(part) for part in (lines, _sizes(summary)))
    return Group(Text(facts), output.table(COLUMNS, rows), Text(sizes))


def _facts(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    base = manifest.base
    revision = f" at revision {base.revision}" if base.revision else ""
    # Nothing is said of a key that is left to its default, or that has no effect here.
    adapter = {key: value for key, value in manifest.adapter.items() if value is not None}
    lines = [
        f"{artifact.folder}: {manifest.kind}, schema version {manifest.schema_version}",
        f"base     {base.id}{revision}, sha256 {base.sha256 or 'unknown'}",
        "adapter  " + ", ".join(f"{key} {_short(value)}" for key, value in adapter.items()),
    ]
    if manifest.model.get("pretrained") is False:
        lines.insert(2, "         drawn at random (model.pretrained: false), not a published model")
    if manifest.task:
        classes = f", {len(manifest.task.classes)} classes" if manifest.task.classes else ""
        lines.append(f"task     {manifest.task.type}{classes}")
    if manifest.source:
        lines.append(f"source   converted from {manifest.source.format}")
    for step in manifest.lineage:
        lines.append(f"lineage  petkit {step.command} ({step.version}, {step.created})")
    return lines


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{value[0]} and {len(value) - 1} more"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sizes(summary: Summary) -> list[str]:
    names = summary.file_nbytes - summary.nbytes
    return [
        f"{summary.nbytes:,} bytes of tensors, {summary.float32_nbytes:,} as float32: {_ratio(summary)}",
        f"{summary.file_nbytes:,} bytes in the file, {names:,} of them names and shapes",
    ]


def _ratio(summary: Summary) -> str:
    packed, plain = summary.nbytes, summary.float32_nbytes
    if packed == plain:
        return "as many"
    return f"{plain / packed:.1f} times more" if plain > packed else f"{packed / plain:.1f} times less"
