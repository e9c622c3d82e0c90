"""The README.md of a distilled student's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petkit.artifacts import Manifest
from petkit.artifacts.card import write_card
from petkit.methods.tropd.config import DistillConfig


def distilled_card(manifest: Manifest, config: DistillConfig, result: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        manifest: what the artifact is.
        config: its recipe.
        result: the content of result.json.

    Returns:
        Markdown.
    """
    sizes, stopped = result["bytes"], f", stopped by {result['stopped']}" if result["stopped"] else ""
    rows = [(name, _measured(result[name])) for name in ("before", "after") if result[name] is not None]
    rows += [
        ("objective", config.objective.kind),
        ("teacher", ", ".join(f"`{name}`" for name in config.teachers)),
        ("adapter", f"{sizes['adapter']:,} bytes"),
        ("student in float32", f"{sizes['full_model_fp32']:,} bytes, {sizes['ratio']:.0f} times as much"),
        ("training", f"{result['steps']} steps, seed {result['seed']}{stopped}"),
    ]
    about = (
        "A petkit adapter for a language model, distilled from a teacher on the student's own responses. It "
        "holds what was trained and not the student's base."
    )
    note = "Rewards are of greedy answers to the validation prompts; divergences are means over their tokens."
    title = f"{config.adapter.method}, {config.adapter.bits} bit"
    return write_card(manifest, title, about, rows, None, note)


def _measured(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["interval"]
    text = f"reward {evaluation['reward']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    if evaluation["forward_kl"] is not None:
        text += (
            f", KL {evaluation['forward_kl']:.4f} forward and {evaluation['reverse_kl']:.4f} reverse, in nats"
        )
    return f"{text}, {evaluation['n']:,} answers"
