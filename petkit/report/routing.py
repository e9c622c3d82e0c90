"""The page of a routing command: traces, planes, and accuracy against tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petkit.report.html import Section, write_page
from petkit.report.tables import Table
from petkit.report.trajectories import (
    DESCRIPTORS,
    draw_frontier,
    draw_planes,
    draw_reliability,
    draw_traces,
)

SHOWN = 200
CAPTIONS = {
    "frontier.png": "Accuracy against tokens, 95 % intervals; the line joins the best but for the oracle. "
    "Policies that come to the same (=), or nearly so (≈), share a marker.",
    "traces.png": "Entropy of each token of the probes, and in thick lines the mean of each regime.",
    "planes.png": "Every question's descriptors, two at a time; the lines are the thresholds.",
    "reliability.png": "How often the learned router's choice was the best one, against how sure it was.",
}


@dataclass(frozen=True)
class Estimates:
    """What is known of the error of entropies.

    Args:
        bias: `largest`, and `mean` over all tokens, of how much too low they may be; None where they are
            exact.
        warning: what to be told where that reaches a threshold.
    """

    bias: Mapping[str, float] | None = None
    warning: str = ""


EXACT = Estimates()


def write_routing_page(
    folder: Path,
    traces: Sequence[tuple[str, Sequence[float]]],
    items: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None = None,
    subtitle: str = "",
    thresholds: Mapping[str, Any] | None = None,
    estimates: Estimates = EXACT,
) -> Path:
    """Write `report.html` and its pictures.

    Args:
        folder: to write to.
        traces: regime and entropies of each question.
        items: descriptors and decision of each question.
        result: `policies` and `datasets` of a comparison, if there was one; `fit` of a calibration, pairs
            of name and value.
        subtitle: which model, on what.
        thresholds: by name, that the descriptors were compared with.
        estimates: what is known of the entropies' error.

    Returns:
        The page.
    """
    plots = folder / "plots"
    images = [draw_traces(traces, plots / "traces.png"), draw_planes(items, plots / "planes.png", thresholds)]
    sections = [Section("Trajectories", images=tuple(images), captions=CAPTIONS)]
    if result is not None:
        frontier = draw_frontier(result["policies"], plots / "frontier.png")
        table = _policies(result["policies"], "all questions")
        sections.insert(
            0, Section("Accuracy and tokens", tables=(table,), images=(frontier,), captions=CAPTIONS)
        )
        sections += _details(result, plots)
        if "fit" in result:
            sections.insert(
                0, Section("This router", tables=(Table(("calibrated", ""), tuple(result["fit"])),))
            )
    sections.append(
        Section("Decisions", paragraphs=_notes(thresholds, estimates), tables=(_decisions(items),))
    )
    return write_page(folder / "report.html", "Routing by entropy", sections, subtitle)


def _notes(thresholds: Mapping[str, Any] | None, estimates: Estimates) -> tuple[str, ...]:
    """What the table of decisions is to be read with."""
    notes = []
    if thresholds:
        named = (f"{name} {thresholds[name]:.4g}" for name in DESCRIPTORS)
        notes.append(f"Thresholds: {', '.join(named)}.")
    bias = estimates.bias
    if bias is not None:
        notes.append(
            f"The entropies are estimates: the true ones are larger by {bias['largest']:.3g} nats at most, "
            f"{bias['mean']:.3g} on average over all tokens; entropy_bias is that average for each question. "
            "Their ranks and steps, and with them spearman and von_neumann, have no bound."
        )
    if estimates.warning:
        notes.append(f"Warning: {estimates.warning}.")
    return tuple(notes)


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
    columns = ("data set", "by", "direct / standard / cot", "choices")
    body = tuple(
        (name, kind.replace("_", " "), " / ".join(map(str, modes.values())), _agreement(modes))
        for name, kinds in counts.items()
        for kind, modes in kinds.items()
    )
    note = (
        "How often the router's thresholds choose each mode, over 8 choices of the questions that are probed."
        " The comparison's rows are of the first choice alone: where the choices differ, so may the row."
    )
    return Table(columns, body, note=note)


def _agreement(modes: Mapping[str, int]) -> str:
    return "agree" if sum(count > 0 for count in modes.values()) == 1 else "differ"


def _policies(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    def cell(value: Mapping[str, float], form: str) -> str:
        # An interval stays in one line.
        return f"{value['mean']:{form}} ({value['low']:{form}}\u00a0to\u00a0{value['high']:{form}})"

    columns = (
        "policy",
        "accuracy",
        "tokens a question",
        "saved against always cot",
        "accuracy against it",
        "direct / standard / cot",
    )
    body = tuple(
        (
            row["policy"],
            cell(row["accuracy"], ".1%"),
            cell(row["tokens"], ".1f"),
            cell(row["tokens_saved"], ".1%"),
            cell(row["accuracy_gain"], "+.1%"),
            " / ".join(str(row["modes"].get(mode, 0)) for mode in ("direct", "standard", "cot")),
        )
        for row in rows
    )
    return Table(columns, body, title=title, note="95 % bootstrap intervals over questions.")


def _decisions(items: Sequence[Mapping[str, Any]]) -> Table:
    bias = ("entropy_bias",) if any("entropy_bias" in item for item in items) else ()
    # The reason comes first, where narrow screens show it too.
    columns = ("id", "decision", "reason", *DESCRIPTORS, *bias)
    body = tuple(tuple(item.get(name) for name in columns) for item in items[:SHOWN])
    note = f"The first {SHOWN} of {len(items)}." if len(items) > SHOWN else ""
    return Table(columns, body, note=note)
