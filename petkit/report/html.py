"""Reports as one self-contained HTML file each: images inlined, light and dark, no script, no request."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from petkit.artifacts import atomic_write
from petkit.errors import ArtifactError, InputError
from petkit.report.distillation import MEASURES as COMPARED
from petkit.report.distillation import (
    before_and_after,
    by_data_set,
    captions,
    draw_distillation,
    origin_rows,
    teacher_rows,
)
from petkit.report.figures import FIT_PIXELS
from petkit.report.plots import read_metrics, training_curves
from petkit.report.rounding import significant
from petkit.report.tables import Table, bytes_text, format_cell

# For measures that thousands separators and 4 significant digits do not suit; a seed is no count.
FORMATS = {"accuracy": ".1%", "seed": "d"}
# Signs of a text that is shown in one line, and of a name, which has no spaces to be wrapped at.
SHORT, LONGEST_NAME = 16, 40
FULL = "full model in float32"
SIZES = {"bytes": "file", "adapter": "adapter", "head": "head", "full_model_fp32": FULL}
# Scores with their intervals, where a result has them.
SCORES = {"spans.f1": ("F1 of spans", ".1%"), "bleu": ("BLEU", ".1f"), "chrf": ("chrF", ".1f")}
# In the headline or under the title; the rest are other measures.
TOLD = {
    *(
        "schema_version",
        "checks",
        "status",
        "stopped",
        "accuracy",
        "interval",
        "perplexity",
        "n",
        "unit",
        "split",
    ),
    *(f"{name}.{key}" for name in SCORES for key in ("value", "interval")),
    *(f"bytes.{key}" for key in (*SIZES, "ratio")),
    *(f"teacher.{key}" for key in ("id", "sha256", "accuracy", "interval", "n", "agreement")),
    *(f"{time}.{key}" for time in ("before", "after") for key, _ in COMPARED),
}
# Likewise, whatever the names behind it are.
TOLD_EACH = ("before.datasets.", "after.datasets.")

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6169; --line: #d9dde2; --page: #ffffff;
  --panel: #f5f6f8; --good: #00714f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --soft: #a0a7b0; --line: #3a4048;
  --page: #15181c; --panel: #1f2329; --good: #4cc79b; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .5rem 0; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; margin-bottom: 1rem; background: no-repeat
  linear-gradient(to right, var(--page) 40%, transparent) local 0 0 / 2rem 100%, no-repeat
  linear-gradient(to left, var(--page) 40%, transparent) local 100% 0 / 2rem 100%, no-repeat
  linear-gradient(to right, var(--line), transparent) scroll 0 0 / .8rem 100%, no-repeat
  linear-gradient(to left, var(--line), transparent) scroll 100% 0 / .8rem 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .88rem; } th.number, td.number { text-align: right; }
td.number, td.whole { white-space: nowrap; } td.long { min-width: 14rem; overflow-wrap: anywhere; }
figure { margin: .5rem 0 1rem; } img { display: block; max-width: 100%; height: auto; background: #fff;
  border-radius: 6px; }
@media (max-width: 60rem) { img { max-width: none; } }
figure.fit { display: inline-block; vertical-align: top; margin-right: 1rem; width: 451px; max-width: 100%; }
figure.fit img { max-width: 100%; }
pre { background: var(--panel); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto;
  font-size: .85rem; }
summary { cursor: pointer; color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
"""


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, paragraphs, tables, pictures and a folded block of text."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    images: tuple[Path, ...] = ()
    text: str = ""
    captions: Mapping[str, str] = field(default_factory=dict)


def write_page(path: Path, title: str, sections: Sequence[Section], subtitle: str = "") -> Path:
    """Write one self-contained HTML page.

    Args:
        path: file to write; replaced whole or not at all.
        title: heading and window title.
        sections: what the page shows, in order.
        subtitle: one line under the heading.

    Returns:
        The file.

    Raises:
        InputError: an image that is missing or not a PNG.
    """
    body = "\n".join(_section(section) for section in sections)
    lead = f'<p class="soft">{escape(subtitle)}</p>' if subtitle else ""
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{lead}\n{body}\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page.encode("utf-8"))
    return path


def write_report(run_folder: Path) -> Path:
    """Write report.html of a finished run, from the files that the run left in its folder.

    Args:
        run_folder: folder with result.json and, where the run made them, metrics.jsonl, checks.json,
            config.yaml, petkit.json and plots/*.png. Training curves are drawn when metrics.jsonl has any.

    Returns:
        Path of report.html inside the folder.

    Raises:
        ArtifactError: result.json is missing or one of the JSON files is damaged.
    """
    result = _read_json(run_folder / "result.json", required=True)
    told = _draw_curves(run_folder, result)
    sections = [
        *_headline_section(result),
        *_plots_section(run_folder, told),
        *_checks_section(_read_json(run_folder / "checks.json")),
        *_list_sections(result),
        *_origin_section(_read_json(run_folder / "petkit.json"), result),
        *_details_section(result),
        *_text_section("Configuration", run_folder / "config.yaml"),
    ]
    subtitle = f"status: {result.get('status', 'unknown')}"
    if result.get("stopped"):
        subtitle += f" (stopped: {result['stopped']})"
    return write_page(
        run_folder / "report.html", f"petkit run: {run_folder.resolve().name}", sections, subtitle
    )


def _draw_curves(run_folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """Draw what a run logged; return captions by the pictures' names."""
    metrics = run_folder / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.is_file() else []
    if not any("loss" in key or "accuracy" in key for row in rows for key in row):
        return {}
    training_curves(metrics, run_folder / "plots" / "training.png")
    draw_distillation(rows, run_folder / "plots")
    return captions(rows, result)


def _headline_section(result: Mapping[str, Any]) -> list[Section]:
    """What a reader looks for first, in words; nothing of it is told again further down."""
    rows = _score_row("accuracy", FORMATS["accuracy"], result.get("accuracy"), result.get("interval"))
    told = flatten(result)
    for name, (title, form) in SCORES.items():
        rows += _score_row(title, form, told.get(f"{name}.value"), told.get(f"{name}.interval"))
    if result.get("perplexity") is not None:
        rows.append(("perplexity", format_cell(result["perplexity"])))
    if result.get("n") is not None:
        split = f" of the {result['split']} split" if result.get("split") else ""
        rows.append(("measured on", f"{format_cell(result['n'])} {result.get('unit', 'examples')}{split}"))
    rows += teacher_rows(result)
    rows += _size_rows(result.get("bytes"))
    tables = [table for table in (before_and_after(result), by_data_set(result)) if table]
    tables += [Table(("measure", "value"), tuple(rows))] if rows else []
    return [Section("Result", tables=tuple(tables))] if tables else []


def _score_row(title: str, form: str, value: Any, interval: Any) -> list[tuple[str, str]]:
    if value is None:
        return []
    ends = [format_cell(end, form) for end in interval or ()]
    return [(title, format_cell(value, form) + (f", 95 % interval {' to '.join(ends)}" if ends else ""))]


def _size_rows(sizes: Any) -> list[tuple[str, str]]:
    if not isinstance(sizes, Mapping):
        return []
    rows = {label: _bytes_cell(sizes[key]) for key, label in SIZES.items() if sizes.get(key) is not None}
    if sizes.get("ratio", 1) != 1 and FULL in rows:
        rows[FULL] += f": the full model takes {sizes['ratio']:,.0f} times the bytes of adapter and head"
    return list(rows.items())


def _list_sections(result: Mapping[str, Any]) -> list[Section]:
    """A table for every list of records, such as the errors of a quantisation, and for classes."""
    sections = []
    if isinstance(result.get("per_class"), Mapping):
        rows = tuple(result["per_class"].items())
        table = Table(("class", "accuracy"), rows, formats=FORMATS)
        sections.append(Section("Accuracy by class", tables=(table,)))
    for name, value in result.items():
        if name != "checks" and _is_records(value):
            sections.append(Section(name.replace("_", " ").capitalize(), tables=(Table.from_records(value),)))
    return sections


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _details_section(result: Mapping[str, Any]) -> list[Section]:
    shown = {
        name: value
        for name, value in flatten(result).items()
        if name not in TOLD
        and not name.startswith(("per_class.", "teachers.", *TOLD_EACH))
        and not _is_records(value)
        and value is not None
    }
    rows = tuple((name, _result_text(name, value)) for name, value in shown.items())
    return [Section("Other measures", tables=(Table(("measure", "value"), rows),))] if rows else []


def _result_text(name: str, value: Any) -> str:
    in_bytes = name.startswith("bytes.") or name.endswith("bytes")
    if in_bytes and isinstance(value, int) and not name.endswith("parameters"):
        return _bytes_cell(value)
    if isinstance(value, float) and "_per_second" in name:
        return significant(value)
    if isinstance(value, (bool, int, float, str)) or value is None:
        return format_cell(value, FORMATS.get(name, ""))
    if name.endswith("interval") and isinstance(value, list) and len(value) == 2:
        return " to ".join(format_cell(end) for end in value)
    return json.dumps(value)


def _bytes_cell(count: int) -> str:
    return f"{count:,} bytes" + (f" ({bytes_text(count)})" if count >= 1024 else "")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping of dotted names.

    Args:
        tree: mapping of names to values or further mappings.
        prefix: put before every name.

    Returns:
        The leaves, in order; lists stay leaves.
    """
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _plots_section(run_folder: Path, told: Mapping[str, str]) -> list[Section]:
    images = tuple(sorted((run_folder / "plots").glob("*.png")))
    return [Section("Plots", images=images, captions=told)] if images else []


def _checks_section(checks: Mapping[str, Any]) -> list[Section]:
    entries = checks.get("checks", [])
    if not entries:
        return []
    rows = tuple(
        (str(entry.get("name")), "passed" if entry.get("ok") else "FAILED", str(entry.get("detail", "")))
        for entry in entries
    )
    return [Section("Checks", tables=(Table(("check", "outcome", "detail"), rows),))]


def _origin_section(manifest: Mapping[str, Any], result: Mapping[str, Any]) -> list[Section]:
    if not manifest:
        return []
    base = manifest.get("base") or {}
    # A whole model names what it was made from; an adapter describes what it belongs to.
    base = base if isinstance(base, Mapping) else {"id": base}
    lineage = tuple(
        (str(step.get("command", "")), str(step.get("version", "")), str(step.get("created", "")))
        for step in manifest.get("lineage", [])
    )
    about = tuple((name, str(value)) for name, value in flatten(base).items() if value is not None)
    return [
        Section(
            "Origin",
            tables=(
                Table(("base model", ""), about),
                Table(("learnt from", ""), tuple(origin_rows(result))),
                Table(("command", "petkit", "created"), lineage),
            ),
        )
    ]


def _text_section(title: str, path: Path) -> list[Section]:
    return [Section(title, text=path.read_text(encoding="utf-8"))] if path.is_file() else []


def _read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise ArtifactError(
                f"{path} must be there to report on a run, got no such file: has the run finished?"
            )
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} must hold a JSON object, got {error}") from error
    if isinstance(value, list):
        # A bare list of checks and an object with a `checks` list mean the same.
        return {"checks": value}
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    parts += [_table(table) for table in section.tables if table.rows]
    parts += [_image(image, section.captions.get(image.name, _caption(image))) for image in section.images]
    if section.text:
        parts.append(f"<details><summary>show</summary><pre>{escape(section.text)}</pre></details>")
    return "\n".join([*parts, "</section>"])


def _caption(image: Path) -> str:
    known = {
        "teaching": "What the student learns of labels and teacher, at every optimiser step.",
    }
    return known.get(image.stem, image.stem.replace("_", " "))


def _table(table: Table) -> str:
    numeric, cells = table.numeric(), table.text_cells()
    heads = [["number"] if right else [] for right in numeric]
    kinds = [
        ["number"] if right else _wrapping([row[place] for row in cells])
        for place, right in enumerate(numeric)
    ]
    head = "".join(_cell("th", name, kind) for name, kind in zip(table.columns, heads, strict=True))
    rows = "\n".join(
        "<tr>" + "".join(_cell("td", cell, kind) for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in cells
    )
    title = f"<p><strong>{escape(table.title)}</strong></p>" if table.title else ""
    # Beside the table and not its caption, which would scroll with a wide one and be cut.
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    table_html = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    return f'{title}<div class="wide">{table_html}</div>{note}'


def _wrapping(texts: Sequence[str]) -> list[str]:
    """How a column may be wrapped: names not at all, sentences and hashes but with room to be read."""
    longest = max(map(len, texts), default=0)
    if longest > LONGEST_NAME:
        return ["long"]
    return ["whole"] if longest <= SHORT or not any(" " in text for text in texts) else []


def _cell(tag: str, text: str, kinds: Sequence[str]) -> str:
    classes = [*kinds, *_verdict_class(text)]
    attribute = f' class="{" ".join(classes)}"' if classes else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def _verdict_class(text: str) -> list[str]:
    return {"passed": ["good"], "FAILED": ["bad"]}.get(text, [])


def _image(path: Path, caption: str) -> str:
    if not path.is_file():
        raise InputError(f"image {path} must be a PNG file, got no such file")
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"image {path} must be a PNG file, got another format")
    data = base64.b64encode(content).decode("ascii")
    # A PNG's width stands behind its signature and the name of its first part.
    fits = int.from_bytes(content[16:20]) <= FIT_PIXELS
    figure = '<figure class="fit">' if fits else "<figure>"
    return (
        f'{figure}<div class="wide"><img alt="{escape(caption)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
