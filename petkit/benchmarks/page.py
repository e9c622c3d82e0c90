"""What an experiment leaves beside its runs: results.json, plots and one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petkit.artifacts import atomic_write
from petkit.benchmarks.comparison import Row, summary_table
from petkit.report.html import Section, write_page
from petkit.report.plots import SizePoint, accuracy_bytes, noise_curve
from petkit.report.statistics import mean_interval


def write_results(folder: Path, title: str, rows: list[Row], facts: dict[str, Any]) -> Path:
    """Write results.json, table.md, the plots and report.html.

    Args:
        folder: the experiment's folder.
        title: heading of the page.
        rows: one per variant, all with the same seeds.
        facts: what a reader must know to repeat the experiment: command, versions, settings.

    Returns:
        Path of report.html.
    """
    payload = {"experiment": title, **facts, "rows": [row.to_dict() for row in rows]}
    atomic_write(folder / "results.json", json.dumps(payload, indent=2).encode())
    table = summary_table(rows)
    atomic_write(folder / "table.md", (table.markdown() + "\n").encode())
    sections = [
        Section("Results", tables=(table,), images=_plots(folder, rows)),
        Section("How to repeat it", text=json.dumps(facts, indent=2)),
    ]
    return write_page(folder / "report.html", title, sections)


def _plots(folder: Path, rows: list[Row]) -> tuple[Path, ...]:
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    points = [SizePoint(row.name, row.bytes["adapter"] + row.bytes["head"], row.accuracy) for row in rows]
    made = [accuracy_bytes(points, plots / "accuracy_bytes.png")]
    if rows[0].noise:
        levels = list(rows[0].noise)
        series = {row.name: [mean_interval(row.noise[level]) for level in levels] for row in rows}
        made.append(noise_curve(series, levels, plots / "noise.png"))
    return tuple(made)
