"""What a report shows of a distillation: what was measured before and after it, its teacher, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from petkit.report.figures import finish, new_figure, percent_axis, save
from petkit.report.plots import draw_curve, number_curves
from petkit.report.tables import Table

# Panels of each picture: what the axis says, and the numbers it shows, by what each is called there.
Panel = tuple[str, Mapping[str, str]]
LEARNING: tuple[Panel, ...] = (
    ("reward", {"reward": "training", "eval_reward": "validation"}),
    (
        "KL to the teacher (nats)",
        {
            "reverse_kl": "reverse, sampled",
            "forward_kl": "forward, likeliest tokens",
            "eval_reverse_kl": "reverse, validation",
            "eval_forward_kl": "forward, validation",
        },
    ),
    ("gradient norm", {"gradient_norm": "gradient norm"}),
)
TOKENS: tuple[Panel, ...] = (
    ("tokens", {"outlier_ratio": "outliers", "trusted": "within the trust region"}),
    ("entropy (nats)", {"entropy": "student", "teacher_entropy": "teacher"}),
    ("tokens of a response", {"response_length": "all", "prefix_length": "given by the teacher"}),
)
# Of pictures.
TEACHING: tuple[Panel, ...] = (
    ("cross-entropy of labels (nats)", {"cross_entropy": "cross-entropy of labels (nats)"}),
    ("softened KL to the teacher (nats)", {"kl": "softened KL to the teacher (nats)"}),
    ("distance of features", {"feature_distance": "distance of features"}),
    ("same answer as the teacher", {"agreement": "same answer as the teacher"}),
)
PARTS = {"reward", "tokens", "same answer as the teacher"}
MEASURES = (
    ("reward", "reward"),
    ("forward_kl", "forward KL to the teacher (nats)"),
    ("reverse_kl", "reverse KL to the teacher (nats)"),
    ("n", "answers"),
)


def draw_distillation(rows: Sequence[Mapping[str, Any]], plots: Path) -> list[Path]:
    """Draw the curves of a distillation.

    Args:
        rows: of metrics.jsonl.
        plots: folder for the pictures.

    Returns:
        The pictures, fewer where a run has no such numbers; none for runs of another kind.
    """
    curves = number_curves(rows)
    pictures = [(LEARNING, "learning.png"), (TOKENS, "tokens.png")] if "reverse_kl" in curves else []
    if "cross_entropy" in curves:
        pictures = [(TEACHING, "teaching.png")]
    found = [_draw(curves, panels, plots / name) for panels, name in pictures]
    return [path for path in found if path is not None]


def _draw(
    curves: Mapping[str, list[tuple[float, float]]], panels: Sequence[Panel], out_png: Path
) -> Path | None:
    shown = [(label, {n: t for n, t in names.items() if n in curves}) for label, names in panels]
    shown = [(label, names) for label, names in shown if names]
    if not shown:
        return None
    figure, every = new_figure(len(shown))
    for axes, (label, names) in zip(every, shown, strict=True):
        for index, (name, title) in enumerate(names.items()):
            draw_curve(axes, title, curves[name], index)
        if label in PARTS:
            percent_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        only = next(iter(names.values()))
        whose = f"{only}: {label}" if len(names) == 1 and only != label else label
        finish(axes, "optimiser step", whose, legend=len(names) > 1, columns=1)
    return save(figure, out_png)


def before_and_after(result: Mapping[str, Any]) -> Table | None:
    """A distillation's measures before and after it; None for other results.

    Args:
        result: the content of result.json.

    Returns:
        The table.
    """
    before, after = result.get("before"), result.get("after")
    if not isinstance(after, Mapping):
        return None
    return Table(("measure", "before", "after"), tuple(_compared(before, after)))


def by_data_set(result: Mapping[str, Any]) -> Table | None:
    """The same for each data set of the prompts; None where there is but one.

    Args:
        result: the content of result.json.

    Returns:
        The table.
    """
    before, after = (_data_sets(result.get(time)) for time in ("before", "after"))
    rows = tuple((name, *row) for name, own in after.items() for row in _compared(before.get(name), own))
    return Table(("data set", "measure", "before", "after"), rows) if rows else None


def _data_sets(evaluation: Any) -> Mapping[str, Any]:
    found = evaluation.get("datasets") if isinstance(evaluation, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _compared(before: Any, after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    first: Mapping[str, Any] = before if isinstance(before, Mapping) else {}
    return [
        (title, first.get(name), after.get(name)) for name, title in MEASURES if after.get(name) is not None
    ]


def teacher_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A teacher's own measures, for beside its student's; none for other results.

    Args:
        result: the content of result.json.

    Returns:
        Name and value of each row.
    """
    teacher = result.get("teacher")
    if not isinstance(teacher, Mapping):
        return []
    rows = [("teacher", f"{teacher.get('id')}, sha256 {teacher.get('sha256')}")]
    if teacher.get("accuracy") is not None:
        ends = " to ".join(f"{end:.1%}" for end in teacher.get("interval") or ())
        interval = f", 95 % interval {ends}" if ends else ""
        rows.append(("teacher's accuracy", f"{teacher['accuracy']:.1%}{interval}"))
    if teacher.get("agreement") is not None:
        rows.append(("same answer as the teacher", f"{teacher['agreement']:.1%}"))
    return rows
