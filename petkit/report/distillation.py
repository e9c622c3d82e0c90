"""What a report shows of a distillation: what was measured before and after it, its teacher, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petkit.report.figures import finish, percent_axis, save, stacked_figure, step_axis
from petkit.report.plots import draw_curve, number_curves, training_caption
from petkit.report.tables import Table, format_cell

# Panels of each picture: what the axis says, and the numbers it shows, by what each is called there.
Panel = tuple[str, Mapping[str, str]]
LEARNING: tuple[Panel, ...] = (
    (
        "reward",
        {
            "reward": "training",
            "eval_reward": "validation",
            "unguided_reward": "unguided",
        },
    ),
    (
        "KL to the teacher (nats)",
        {
            "reverse_kl": "reverse, training",
            "forward_kl": "forward, training",
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
# What the rows of every distillation of responses have.
OF_RESPONSES = "response_length"
PARTS = {"reward", "tokens", "same answer as the teacher"}
MEASURES = (
    ("reward", "reward"),
    ("interval", "95 % interval of the reward"),
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
    pictures = [(LEARNING, "learning.png"), (TOKENS, "tokens.png")] if OF_RESPONSES in curves else []
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
    figure, every = stacked_figure(len(shown))
    for axes, (label, names) in zip(every, shown, strict=True):
        for index, (name, title) in enumerate(names.items()):
            draw_curve(axes, title, curves[name], index)
        if label in PARTS:
            percent_axis(axes)
        step_axis(axes)
        finish(axes, "optimiser step", label, legend=set(names.values()) != {label})
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
    note = "Of greedy answers to the validation prompts."
    if result.get("steps") is not None:
        best = result.get("best_step")
        chosen = ", which the validation prompts chose" if best is not None else ", the last one"
        note += f" After: the reloaded artifact, of step {result['steps'] if best is None else best}{chosen}."
    if after.get("forward_kl") is None:
        note += " No divergences: a served or kept teacher does not show its whole distribution."
    return Table(("measure", "before", "after"), tuple(_compared(before, after)), note=note)


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
        (title, _cell(name, first.get(name)), _cell(name, after.get(name)))
        for name, title in MEASURES
        if after.get(name) is not None
    ]


def _cell(name: str, value: Any) -> str:
    if name == "interval":
        return " to ".join(f"{end:.1%}" for end in value or ())
    return format_cell(value, ".1%" if name == "reward" else "")


def captions(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> dict[str, str]:
    """What stands under the pictures of a run.

    Args:
        rows: of metrics.jsonl.
        result: the content of result.json.

    Returns:
        Captions by the pictures' names; of `training.png` alone where the run was no distillation.
    """
    curves, found = number_curves(rows), {"training.png": training_caption(rows)}
    if OF_RESPONSES not in curves:
        return found
    found["training.png"] += (
        f" The loss is that of the objective {result.get('objective')}: losses of different objectives "
        "measure different things and are not to be compared, and that of a policy gradient may be negative "
        "and says nothing of how well the student does. The KL to the teacher and the reward do."
    )
    kept = _from_cache(result)
    where = "all tokens" if result.get("objective") == "gkd" else "the teacher's likeliest, the others as one"
    return found | {
        "learning.png": _learning_caption(curves, where, result.get("reward_function") is not None, kept),
        "tokens.png": _tokens_caption(curves, kept, _is_served(result)),
    }


def _from_cache(result: Mapping[str, Any]) -> bool:
    """Whether the responses of a run are those of a cache."""
    teachers = result.get("teachers")
    return isinstance(teachers, Mapping) and any("cache" in one for one in teachers.values())


def _is_served(result: Mapping[str, Any]) -> bool:
    """Whether a teacher of a run was a server, which shows its likeliest tokens alone."""
    teachers = result.get("teachers")
    each = teachers.values() if isinstance(teachers, Mapping) else ()
    return any(str(one.get("id")).startswith(("http://", "https://")) for one in each)


def _learning_caption(curves: Mapping[str, Any], where: str, own_reward: bool, kept: bool) -> str:
    parts = []
    if "reward" in curves:
        plain = "the part of the responses of each step that are right"
        training = "the mean reward of the responses of each step" if own_reward else plain
        parts.append(f"{training}, which are the cache's and not the student's" if kept else training)
    if "eval_reward" in curves:
        parts.append("of greedy answers to the validation prompts")
    text = f"Reward: {', and '.join(parts)}. " if parts else ""
    if "unguided_reward" in curves:
        text += (
            "That of all responses counts what the teacher wrote at their beginnings; beside it are those "
            "that the student began. "
        )
    kinds = []
    if "reverse_kl" in curves:
        whose = (
            "tokens of the cache, which the student has not sampled as it is now"
            if kept
            else "sampled tokens"
        )
        kinds.append(f"reverse, as the mean of log student - log teacher at the {whose}")
    if "forward_kl" in curves:
        along = "" if "reverse_kl" in curves else ", along the teacher's responses"
        kinds.append(f"forward, on {where}{along}")
    text += f"KL to the teacher: {', and '.join(kinds)}" if kinds else ""
    text += "; both on all tokens along the answers to the validation prompts" * ("eval_reverse_kl" in curves)
    return f"{text}. Gradient norm: before clipping." if kinds else f"{text}Gradient norm: before clipping."


def _tokens_caption(curves: Mapping[str, Any], kept: bool, served: bool) -> str:
    if "outlier_ratio" not in curves:
        return "Tokens that the teacher wrote, all of every response. Entropy: of the distributions at them."
    trusted = "; within the trust region: the part that learnt from its own worth" * ("trusted" in curves)
    about = "Tokens that a student sampled into the cache" if kept else "Tokens that the student sampled"
    which = "at these tokens" if kept else "that the tokens were drawn from"
    grouped = (
        "; that of a served teacher counts all tokens but the likeliest as one, and is at most the true one"
    )
    return (
        f"{about}. Outliers: the mean of 1 - min(teacher / student, 1){trusted}. "
        f"Entropy: of the distributions {which}{grouped * served}. Tokens of a response: with what the "
        "teacher began."
    )


def origin_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The teachers of a distillation, for its origin; none for other results.

    Args:
        result: the content of result.json.

    Returns:
        Name and value of each row.
    """
    teachers = result.get("teachers")
    if not isinstance(teachers, Mapping):
        return []
    return [(f"teacher of {name}" if name else "teacher", _teacher(one)) for name, one in teachers.items()]


def _teacher(facts: Mapping[str, str]) -> str:
    kept = f", from the cache of sha256 {facts['cache']}" if "cache" in facts else ""
    return f"{facts.get('id')}, sha256 {facts.get('sha256')}{kept}"


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
