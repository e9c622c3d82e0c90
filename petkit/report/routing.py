"""The page of a routing command: traces, planes, and accuracy against tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petkit.report.html import Section, write_page
from petkit.report.tables import Table
from petkit.report.trajectories import draw_frontier, draw_planes, draw_traces

SHOWN = 200


def write_routing_page(
    folder: Path,
    traces: Sequence[tuple[str, Sequence[float]]],
    items: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html` and its pictures.

    Args:
        folder: to write to.
        traces: regime and entropies of each question.
        items: descriptors and decision of each question.
        result: `policies` and `datasets` of a comparison, if there was one.

    Returns:
        The page.
    """
    plots = folder / "plots"
    images = [draw_traces(traces, plots / "traces.png"), draw_planes(items, plots / "planes.png")]
    sections = [Section("Trajectories", images=tuple(images))]
    if result is not None:
        frontier = draw_frontier(result["policies"], plots / "frontier.png")
        tables = [_policies(result["policies"], "all questions")]
        tables += [_policies(rows, name) for name, rows in result["datasets"].items()]
        sections.insert(0, Section("Accuracy and tokens", tables=tuple(tables), images=(frontier,)))
    sections.append(Section("Decisions", tables=(_decisions(items),)))
    return write_page(folder / "report.html", "Routing by entropy", sections)


def _policies(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    def cell(value: Mapping[str, float], form: str) -> str:
        return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"

    columns = ("policy", "accuracy", "tokens", "saved against always cot", "direct / standard / cot")
    body = tuple(
        (
            row["policy"],
            cell(row["accuracy"], ".1%"),
            cell(row["tokens"], ".1f"),
            cell(row["tokens_saved"], ".1%"),
            " / ".join(str(row["modes"].get(mode, 0)) for mode in ("direct", "standard", "cot")),
        )
        for row in rows
    )
    return Table(columns, body, title=title, note="95 % bootstrap intervals over questions.")


def _decisions(items: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("id", "decision", "cumulative", "spearman", "von_neumann", "reason")
    body = tuple(tuple(item[name] for name in columns) for item in items[:SHOWN])
    note = f"The first {SHOWN} of {len(items)}." if len(items) > SHOWN else ""
    return Table(columns, body, note=note)
