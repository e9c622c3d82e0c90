"""The README.md of a distilled student's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from petkit.artifacts.card import lay_out
from petkit.methods.tropd.config import DistillConfig

if TYPE_CHECKING:
    from petkit.artifacts.manifest import Step
    from petkit.methods.tropd.recipe import Ready


def distilled_card(
    lineage: Sequence[Step], config: DistillConfig, ready: Ready, result: Mapping[str, Any]
) -> str:
    """Write the card.

    Args:
        lineage: of the artifact.
        config: its recipe.
        ready: the student and its teachers.
        result: the content of result.json.

    Returns:
        Markdown.
    """
    sizes, stopped = result["bytes"], f", stopped by {result['stopped']}" if result["stopped"] else ""
    whole, loaded = config.student.tuning == "full", ready.loaded
    rows, own_reward, taught = [], result["reward_function"], ready.teachers.facts()
    for time in ("before", "after"):
        if result[time] is not None:
            rows.append((time, _measured(result[time])))
            named = result[time].get("datasets", {})
            rows += [(f"{time}, {name}", _measured(one)) for name, one in named.items()]
    rows += [
        ("objective", config.objective.kind),
        ("reward", _judge(own_reward)),
        *((f"teacher of {key}" if key else "teacher", f"`{one['id']}`") for key, one in taught.items()),
        ("student before", f"`{loaded.base_id}`, sha256 `{loaded.base_sha256}`"),
        ("weights" if whole else "adapter", f"{sizes['bytes' if whole else 'adapter']:,} bytes"),
        ("training", f"{result['steps']} steps, seed {result['seed']}{stopped}"),
    ]
    if not whole:
        full = f"{sizes['full_model_fp32']:,} bytes, {sizes['ratio']:.0f} times as much"
        rows.insert(-1, ("student in float32", full))
    teachers = "a teacher" if len(taught) == 1 else f"{len(taught)} teachers"
    about = f"A petkit student, distilled from {teachers} on {_responses(ready)}. " + (
        "It is a whole model in the layout of transformers."
        if whole
        else "It holds the adapter that was trained and not the student's base."
    )
    note = "Rewards are of greedy answers to the validation prompts"
    kept = (result[time] for time in ("before", "after") if result[time] is not None)
    known = any(one["forward_kl"] is not None for one in kept)
    note += "; divergences are means over their tokens." if known else "."
    own = "all weights" if whole else f"{config.adapter.method}, {config.adapter.bits} bit"
    use = ("petkit eval FOLDER --data QUESTIONS.jsonl", "petkit serve FOLDER")
    predict = () if whole else ("petkit predict FOLDER INPUT...",)
    return lay_out(f"Distilled student, {own}", about, rows, note, lineage, (*predict, *use))


def _responses(ready: Ready) -> str:
    """Whose responses a student learnt from."""
    if ready.teachers.cached is None:
        return "its own responses"
    if ready.teachers.write_all:
        return "the teacher's responses, kept in a cache"
    writer = ready.teachers.cached.manifest.student_sha256
    if writer == ready.loaded.base_sha256:
        return "its own responses before it was trained, kept in a cache"
    return f"the responses of another student (sha256 `{writer}`), kept in a cache"


def _judge(reward: Mapping[str, str] | None) -> str:
    if reward is None:
        return "answers compared with the questions'"
    return f"`{reward['function']}`, sha256 `{reward['sha256']}`"


def _measured(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["interval"]
    text = f"reward {evaluation['reward']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    if evaluation["forward_kl"] is not None:
        text += (
            f", KL {evaluation['forward_kl']:.4f} forward and {evaluation['reverse_kl']:.4f} reverse, in nats"
        )
    return f"{text}, {evaluation['n']:,} answers"
