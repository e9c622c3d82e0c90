"""What the commands of `petkit route` show on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petkit.cli import output

if TYPE_CHECKING:
    from petkit.methods.edrm.calibration import Reached
    from petkit.methods.edrm.rule import Rule

ITEM_COLUMNS = ("id", "decision", "regime", "cumulative", "spearman", "von_neumann")
OWN_QUESTIONS = (
    "measured on the questions it was calibrated on, which flatters it: judge it by others, with `petkit "
    "route eval`"
)


def thresholds_text(thresholds: Mapping[str, Any]) -> str:
    """The numbers of the rule's inequalities, in one line."""
    return (
        f"cumulative {thresholds['cumulative']:.4g}, spearman {thresholds['spearman']:.4g}, "
        f"von Neumann {thresholds['von_neumann']:.4g}"
    )


def trace(record: Mapping[str, Any], item: Mapping[str, Any], thresholds: Mapping[str, Any]) -> str:
    """A trajectory with its descriptors, what they were compared with, and what decided.

    Args:
        record: with `entropies`.
        item: as `Rule.explained` has it.
        thresholds: of the rule; empty where a network decides.
    """
    from petkit.report.sparkline import sparkline

    values = record["entropies"]
    top = f"entropy 0 to {max(values):.2f} nats over {len(values)} tokens" if values else "no token"
    lines = [
        f"{item['id']}: {item['decision']} ({item['regime']})",
        sparkline(values),
        f"{top}; {item['reason']}",
        f"descriptors: {thresholds_text(item)}",
    ]
    if thresholds:
        lines.append(f"thresholds: {thresholds_text(thresholds)}")
    if "entropy_bias" in item:
        bound = f"at most {item['entropy_bias']:.3g} nats a token too low on average"
        lines.append(f"estimates: {bound}; spearman and von Neumann have no bound")
    return "\n".join(lines)


def item_table(items: Sequence[Mapping[str, Any]], thresholds: Mapping[str, Any]) -> Any:
    """The descriptors of many trajectories, with the mean bound on their error where they are estimates.

    Args:
        items: as `Rule.explained` has them.
        thresholds: of the rule.
    """
    columns = ITEM_COLUMNS + (("entropy_bias",) if any("entropy_bias" in item for item in items) else ())
    rows = [[_shown(item.get(name)) for name in columns] for item in items]
    return output.table(columns, rows, f"thresholds: {thresholds_text(thresholds)}")


def _shown(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value


def fit_rows(rule: Rule, reached: Reached, questions: int, folder: Path) -> list[tuple[str, str]]:
    """What a calibration came to, as pairs of name and value.

    Args:
        rule: that was fitted.
        reached: on its own questions.
        questions: how many.
        folder: of the router.
    """
    learned = rule.config.rule == "learned"
    fitted = "a network decides" if learned else thresholds_text(vars(rule.thresholds))
    kept = "" if reached.objective.kind == "utility" else " (kept)" if reached.is_met else " (NOT kept)"
    return [
        ("fitted thresholds", fitted),
        ("asked for", reached.asked),
        ("reached", reached.value + kept),
        ("questions", str(questions)),
        ("written to", str(folder)),
        ("the router's row", OWN_QUESTIONS),
    ]


def comparison(policies: Sequence[Mapping[str, Any]]) -> Any:
    """What every policy came to, and below it, since one table is too wide, how often it chose each mode."""
    return output.stacked(policy_table(policies), "", mode_table(policies))


def mode_table(policies: Sequence[Mapping[str, Any]]) -> Any:
    """How many questions every policy answers in each mode."""
    from petkit.methods.edrm.algorithm import MODES

    rows = [(one["policy"], *(one["modes"].get(mode, 0) for mode in MODES)) for one in policies]
    return output.table(("questions answered", *MODES), rows)


def policy_table(policies: Sequence[Mapping[str, Any]]) -> Any:
    """Accuracy and tokens of every policy, with their intervals."""

    def cell(value: Mapping[str, float], form: str) -> str:
        return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"

    rows = [
        (
            one["policy"],
            cell(one["accuracy"], ".1%"),
            cell(one["tokens"], ".1f"),
            cell(one["tokens_saved"], ".1%"),
            cell(one["accuracy_gain"], "+.1%"),
        )
        for one in policies
    ]
    columns = ("policy", "accuracy", "tokens a question", "saved against always cot", "accuracy against it")
    return output.table(columns, rows)


def bias_warning(items: Sequence[Mapping[str, Any]], limit: float) -> str | None:
    """What to be told where a sum of estimates lies below a threshold, and the true one may lie above.

    Args:
        items: as `Rule.explained` has them.
        limit: the threshold of the sum.

    Returns:
        One line; None where no sum does.
    """
    near = [
        item
        for item in items
        if item["cumulative"] <= limit < item["cumulative"] + item.get("cumulative_bias", 0.0)
    ]
    if not near:
        return None
    return (
        f"the entropies are estimates: {len(near)} of {len(items)} sums ({near[0]['id']}: "
        f"{near[0]['cumulative']:.4g}, up to {near[0]['cumulative_bias']:.3g} too low) may lie above the "
        f"threshold of {limit:g} nats; calibrate a router with the served model"
    )
