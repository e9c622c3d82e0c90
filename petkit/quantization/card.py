"""The README.md of a quantised artifact."""

from __future__ import annotations

from collections.abc import Sequence

from petkit.artifacts import Manifest
from petkit.artifacts.card import write_card
from petkit.quantization.config import QuantizationConfig
from petkit.quantization.errors import MatrixError, OutputError
from petkit.quantization.ledger import Ledger, size_against
from petkit.quantization.registry import METHODS


def quantization_card(
    manifest: Manifest,
    settings: QuantizationConfig,
    errors: Sequence[MatrixError],
    ledger: Ledger,
    lost: OutputError | None = None,
) -> str:
    """Write the model card.

    Args:
        manifest: what the artifact is.
        settings: how it was quantised.
        errors: what each matrix lost, at least one.
        ledger: where its bytes are.
        lost: what the predictions lost, where inputs were given.

    Returns:
        Markdown.
    """
    ratio = ledger.float32_bytes / ledger.nbytes
    mean = sum(error.relative_error for error in errors) / len(errors)
    worst = max(errors, key=lambda error: error.relative_error)
    rows = [
        ("method", f"{settings.method}: {METHODS[settings.method].summary}"),
        (
            "relative error of the weights",
            f"mean {mean:.3f}, largest {worst.relative_error:.3f} ({worst.name})",
        ),
        ("predictions", _predictions(lost)),
        ("file", f"{ledger.nbytes:,} bytes, {size_against(ratio, 'in float32')}"),
    ]
    return write_card(
        manifest,
        f"{manifest.adapter.get('method', 'adapter')}, {settings.bits} bit",
        "A petkit adapter, quantised after training. It holds what was trained, not the base model.",
        rows,
    )


def _predictions(lost: OutputError | None) -> str:
    if lost is None:
        return "not compared: `petkit quantize --data` does"
    return f"KL {lost.kl:.3g} nats, {lost.top1_agreement:.1%} of {lost.count:,} unchanged"
