"""The README.md of a translator's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petkit.artifacts.card import lay_out
from petkit.artifacts.translator import TranslatorManifest
from petkit.methods.nart_crf.config import TranslatorConfig


def measured(result: Mapping[str, Any]) -> str:
    """Write an evaluation as one line.

    Args:
        result: the payload of a `TranslationEvaluation`.

    Returns:
        Text such as `BLEU 21.3 (20.1 to 22.6), chrF 48.0 (47.1 to 48.9), 500 sentences`.
    """
    scores = []
    for name, title in (("bleu", "BLEU"), ("chrf", "chrF")):
        value, interval = result[name]["value"], result[name]["interval"]
        between = "" if interval is None else f" ({interval[0]:.1f} to {interval[1]:.1f})"
        scores.append(f"{title} {value:.1f}{between}")
    return f"{', '.join(scores)}, {result['n']:,} sentence{'' if result['n'] == 1 else 's'}"


def translator_card(manifest: TranslatorManifest, config: TranslatorConfig, result: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        manifest: what the artifact is.
        config: its recipe.
        result: the content of result.json.

    Returns:
        Markdown.
    """
    shape, stopped = config.model, f", stopped by {result['stopped']}" if result["stopped"] else ""
    rows = [
        ("test split", measured(result)),
        ("model", _model(config)),
        ("sizes", f"hidden {shape.hidden}, layers {shape.encoder_layers} and {shape.decoder_layers}"),
        ("subwords", f"{result['vocabulary']:,}"),
        ("learned from", "the translations of its teacher" if config.distills else "the data's own targets"),
        ("weights", f"{result['bytes']:,} bytes"),
        ("training", f"{result['steps']} steps, seed {result['seed']}{stopped}"),
    ]
    about = "A petkit translator. Intervals are 95 %, of a bootstrap over sentences."
    note = "The test split was evaluated once, from the reloaded artifact, and chose nothing."
    use = ("petkit decode FOLDER FILE.jsonl", "petkit eval FOLDER --data FILE.jsonl")
    return lay_out(f"Translator, {shape.kind}", about, rows, note, manifest.lineage, use)


def _model(config: TranslatorConfig) -> str:
    if config.is_teacher:
        return "autoregressive: one token after the other"
    crf = (
        f", CRF of rank {config.crf.rank} over {config.crf.beam} candidates"
        if "crf" in config.model.kind
        else ""
    )
    own = config.lengths
    lengths = own.kind if own.kind == "predictor" else f"offset {own.offset}"
    return f"{config.model.kind}: all tokens at once{crf}; lengths by {lengths}"
