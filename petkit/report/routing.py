"""The page of a routing command: traces, planes, and accuracy against tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petkit.report.html import Section, write_page
from petkit.report.tables import Table
from petkit.report.trajectories import draw_frontier, draw_planes, draw_reliability, draw_traces

SHOWN = 200
CAPTIONS = {
    "frontier.png": "Accuracy against tokens, 95 % intervals; the line joins the best but for the oracle.",
    "traces.png": "Entropy of each token of the probes, and in thick lines the mean of each regime.",
    "planes.png": "Every question's descriptors, two at a time.",
    "reliability.png": "How often the learned router's choice was the best one, against how sure it was.",
}


def write_routing_page(
    folder: Path,
    traces: Sequence[tuple[str, Sequence[float]]],
    items: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None = None,
    subtitle: str = "",
) -> Path:
    """Write `report.html` and its pictures.

    Args:
        folder: to write to.
        traces: regime and entropies of each question.
        items: descriptors and decision of each question.
        result: `policies` and `datasets` of a comparison, if there was one.
        subtitle: which model, on what.

    Returns:
        The page.
    """
    plots = folder / "plots"
    images = [draw_traces(traces, plots / "traces.png"), draw_planes(items, plots / "planes.png")]
    sections = [Section("Trajectories", images=tuple(images), captions=CAPTIONS)]
    if result is not None:
        frontier = draw_frontier(result["policies"], plots / "frontier.png")
        table = _policies(result["policies"], "all questions")
        sections.insert(
            0, Section("Accuracy and tokens", tables=(table,), images=(frontier,), captions=CAPTIONS)
        )
        sections += _details(result, plots)
    sections.append(Section("Decisions", tables=(_decisions(items),)))
    return write_page(folder / "report.html", "Routing by entropy", sections, subtitle)


def _details(result: Mapping[str, Any], plots: Path) -> list[Section]:
    found = []
    reliability = result["reliability"]
    if reliability is not None:
        picture = draw_reliability(reliability["bins"], plots / "reliability.png")
        text = f"Expected calibration error {reliability['error']:.3f}, over five folds."
        found.append(
            Section(
                "Reliability of the learned router", paragraphs=(text,), images=(picture,), captions=CAPTIONS
            )
        )
    found.append(Section("Data sets as a whole", tables=(_dataset_level(result["dataset_level"]),)))
    tables = tuple(_policies(rows, name) for name, rows in result["datasets"].items())
    return [*found, Section("Each data set", tables=tables)]


def _dataset_level(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Table:
    columns = ("data set", "by", "direct / standard / cot")
    body = tuple(
        (name, kind.replace("_", " "), " / ".join(str(count) for count in modes.values()))
        for name, kinds in counts.items()
        for kind, modes in kinds.items()
    )
    note = (
        "How often the router's thresholds choose each mode, over 8 choices of the questions that are probed."
    )
    return Table(columns, body, note=note)


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
