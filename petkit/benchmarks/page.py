"""What an experiment leaves beside its runs: results.json, plots and one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petkit.artifacts import atomic_write
from petkit.benchmarks.comparison import Row, tables
from petkit.benchmarks.experiment import REFERENCE, ExperimentConfig
from petkit.report.html import Section, write_page
from petkit.report.plots import (
    SizePoint,
    accuracy_bytes,
    grouped_intervals,
    named_intervals,
    noise_curve,
)
from petkit.report.statistics import Interval, mean_interval

CAPTIONS = {
    "accuracy_bytes.png": "Test accuracy against the bytes of what was trained, head included.",
    "accuracy_variants.png": "Test accuracy of each variant.",
    "accuracy_bits.png": "Test accuracy against bits per weight; the dashed line is that of 32 bits.",
    "noise.png": "Test accuracy with Gaussian noise on every adapter matrix.",
}


def write_results(
    folder: Path,
    title: str,
    rows: list[Row],
    facts: dict[str, Any],
    experiment: ExperimentConfig | None = None,
) -> Path:
    """Write results.json, table.md, the plots and report.html.

    Args:
        folder: the experiment's folder.
        title: heading of the page.
        rows: one per variant, all with the same seeds.
        facts: what a reader must know to repeat the experiment: command, versions, settings.
        experiment: says what accuracy is drawn against; None draws it against bytes.

    Returns:
        Path of report.html.
    """
    payload = {"experiment": title, **facts, "rows": [row.to_dict() for row in rows]}
    atomic_write(folder / "results.json", json.dumps(payload, indent=2).encode())
    shown = tables(rows)
    # A title of its own, since Markdown's tables have none.
    markdown = "\n\n".join("\n\n".join(filter(None, (table.title, table.markdown()))) for table in shown)
    atomic_write(folder / "table.md", (markdown + "\n").encode())
    sections = [
        Section("Results", (_about(facts),), shown, _plots(folder, rows, experiment), captions=CAPTIONS),
        Section("How to repeat it", text=json.dumps(facts, indent=2)),
    ]
    return write_page(folder / "report.html", title, sections)


def _about(facts: dict[str, Any]) -> str:
    """One sentence on what was run and where; facts that a caller left out are left out."""
    settings, machine = facts.get("settings", {}), facts.get("environment", {})
    parts = {
        "recipe": settings.get("recipe"),
        "changes": ", ".join(settings.get("set", ())),
        "kernels": machine.get("kernels"),
        "processor": machine.get("cpu"),
        "torch": machine.get("torch"),
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items() if value)


def _plots(folder: Path, rows: list[Row], experiment: ExperimentConfig | None) -> tuple[Path, ...]:
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    made = [_accuracies(plots, rows, experiment)]
    if rows[0].noise:
        levels = list(rows[0].noise)
        series = {row.name: [mean_interval(row.noise[level]) for level in levels] for row in rows}
        made.append(noise_curve(series, levels, plots / "noise.png"))
    return tuple(made)


def _accuracies(plots: Path, rows: list[Row], experiment: ExperimentConfig | None) -> Path:
    if experiment is None or experiment.plot == "bytes":
        points = [SizePoint(row.name, row.bytes["adapter"] + row.bytes["head"], row.accuracy) for row in rows]
        return accuracy_bytes(points, plots / "accuracy_bytes.png")
    if experiment.plot == "variants":
        return named_intervals({row.name: row.accuracy for row in rows}, plots / "accuracy_variants.png")
    groups: dict[int, dict[str, Interval]] = {}
    for row, variant in zip(rows, experiment.variants, strict=True):
        groups.setdefault(variant.bits or 0, {})[variant.line] = row.accuracy
    named = {str(bits): groups[bits] for bits in sorted(groups)}
    return grouped_intervals(
        named, plots / "accuracy_bits.png", x_label="bits per weight", reference=REFERENCE
    )
