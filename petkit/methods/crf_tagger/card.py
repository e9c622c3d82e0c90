"""The README.md of a tagger's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from petkit.artifacts.card import lay_out
from petkit.artifacts.tagger import TaggerManifest
from petkit.methods.crf_tagger.config import TaggerConfig


def measured(result: Mapping[str, Any]) -> str:
    """Write an evaluation as one line.

    Args:
        result: the payload of a `TaggerEvaluation`.

    Returns:
        Text such as `F1 81.2% (79.0% to 83.1%), accuracy 97.0% (96.4% to 97.5%), 500 sentences of 7,000
        words`; of a single sentence it says why there is no interval.
    """
    parts = [f"accuracy {ranged(result['accuracy'], result['interval'])}"]
    if result["spans"] is not None:
        parts.insert(0, f"F1 {ranged(**result['spans']['f1'])}")
    sentences = "1 sentence" if result["sentences"] == 1 else f"{result['sentences']:,} sentences"
    parts.append(f"{sentences} of {result['n']:,} words")
    note = "; an interval needs at least 2 sentences" if result["sentences"] == 1 else ""
    return ", ".join(parts) + note


def ranged(value: float, interval: Sequence[float] | None) -> str:
    """Write a fraction, with its interval where there is one.

    Args:
        value: 0 to 1.
        interval: its ends, or None.

    Returns:
        Text such as `81.2% (79.0% to 83.1%)`.
    """
    if interval is None:
        return f"{value:.1%}"
    low, high = interval
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def tagger_card(manifest: TaggerManifest, config: TaggerConfig, result: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        manifest: what the artifact is.
        config: its recipe.
        result: the content of result.json.

    Returns:
        Markdown.
    """
    base, sizes = manifest.base, result["bytes"]
    stopped = f", stopped by {result['stopped']}" if result["stopped"] else ""
    rows = [
        ("test split", measured(result)),
        (
            "head",
            config.head.kind + (f", constraints {config.constrain}" if config.head.kind == "crf" else ""),
        ),
        ("labels", ", ".join(f"`{label}`" for label in manifest.labels)),
        ("scheme", config.data.scheme),
        ("weights", f"{sizes['adapter'] + sizes['head']:,} bytes"),
        ("training", f"{result['steps']} steps, seed {result['seed']}{stopped}"),
        (
            "base",
            f"`{base.id}`, sha256 `{base.sha256}`" if base else "none: all weights are the tagger's own",
        ),
    ]
    about = "A petkit tagger: it gives each word a tag. Intervals are 95 %, of a bootstrap over sentences."
    note = "The test split was evaluated once, from the reloaded artifact, and chose nothing."
    title = f"Tagger, {'BiLSTM' if base is None else base.id}"
    use = ("petkit eval FOLDER --data FILE.conll", "petkit predict FOLDER FILE.conll")
    return lay_out(title, about, rows, note, manifest.lineage, use)
