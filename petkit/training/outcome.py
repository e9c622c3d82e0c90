"""What a finished run is judged by: bytes, the behaviour of the reloaded artifact, and the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from petkit.artifacts import Check, Manifest, PackedMatrix
from petkit.artifacts.card import write_card

# Packed kernels add up in another order than the dense product they replace. Float32 rounding, 6e-8, grows
# to about 1e-5 of the largest logit over a dozen blocks; a wrong bit, shift or scale moves logits by more
# than 1e-2.
RELATIVE_TOLERANCE = 1e-3


def size_ledger(
    packed: Mapping[str, PackedMatrix], dense: Mapping[str, Tensor], full_model_bytes: int
) -> dict[str, Any]:
    """Count the bytes of an artifact's tensors against full fine-tuning.

    Args:
        packed: quantised matrices by module name, each with its shift and scale.
        dense: other tensors by name.
        full_model_bytes: float32 bytes of the whole model, head included.

    Returns:
        `adapter`, `head`, `full_model_fp32` in bytes, and `ratio`, how many artifacts one full model
        outweighs.
    """
    sizes = {name: matrix.nbytes for name, matrix in packed.items()}
    sizes |= {name: tensor.numel() * tensor.element_size() for name, tensor in dense.items()}
    head = sum(size for name, size in sizes.items() if name.partition(".")[0] == "head")
    total = sum(sizes.values())
    return {
        "adapter": total - head,
        "head": head,
        "full_model_fp32": full_model_bytes,
        "ratio": full_model_bytes / total,
    }


def compare_logits(trained: Tensor, reloaded: Tensor) -> Check:
    """Compare the logits of the model in memory with those of its reloaded artifact.

    Args:
        trained: (..., classes) of the model that was trained, in evaluation mode.
        reloaded: the same examples through the artifact.

    Returns:
        The check: the largest difference within the tolerance, and the same predictions, but for examples
        whose two best logits lie closer together than the tolerance.
    """
    trained, reloaded = trained.double(), reloaded.double()
    tolerance = RELATIVE_TOLERANCE * max(1.0, float(trained.abs().max()))
    difference = float((trained - reloaded).abs().max())
    if trained.shape[-1] > 1:
        best = trained.topk(2, dim=-1).values
        decided = best[..., 0] - best[..., 1] > tolerance
    else:
        decided = torch.ones(trained.shape[:-1], dtype=torch.bool)
    flips = int(((trained.argmax(-1) != reloaded.argmax(-1)) & decided).sum())
    rows = decided.numel()
    # Written so that NaN fails.
    fits = difference <= tolerance and flips == 0
    largest = f"largest difference {difference:.3g}, {tolerance:.3g} allowed"
    detail = f"{largest}; {flips:,} of {rows:,} predictions differ"
    return Check("reloaded artifact gives the same logits", fits, detail)


def model_card(
    manifest: Manifest,
    result: Mapping[str, Any],
    licence: str | None,
    more: Sequence[tuple[str, str]] = (),
) -> str:
    """Write the artifact's README.md.

    Args:
        manifest: what the artifact is.
        result: the content of result.json.
        licence: of the base model, where it is known.
        more: name and value of what the method measured besides.

    Returns:
        Markdown.
    """
    adapter, size = manifest.adapter, result["bytes"]
    task = manifest.task.type if manifest.task else "unknown"
    rows = [
        ("test split", measured_accuracy(result)),
        *more,
        ("adapter", f"{size['adapter']:,} bytes"),
        ("head", f"{size['head']:,} bytes"),
        ("full model in float32", f"{size['full_model_fp32']:,} bytes, {size['ratio']:.0f} times as much"),
        ("training", f"{result['steps']} steps, seed {result['seed']}{_stopped(result)}"),
    ]
    about = (
        f"A petkit adapter for {task.replace('_', ' ')}. It holds what was trained and not the base model."
    )
    note = "The test split was evaluated once, from the packed artifact, and chose nothing."
    return write_card(manifest, f"{adapter['method']}, {adapter['bits']} bit", about, rows, licence, note)


def measured_accuracy(result: Mapping[str, Any]) -> str:
    """Write an evaluation as one line of a card.

    Args:
        result: holds `accuracy`, `interval` and `n`, or `perplexity` and `n`.

    Returns:
        Text such as `accuracy 81.2% (95 % interval 78.1% to 84.0%, 500 examples)`.
    """
    if result.get("accuracy") is None:
        return f"perplexity {result['perplexity']:.3f} over {result['n']:,} tokens"
    low, high = result["interval"]
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    return f"accuracy {result['accuracy']:.1%} ({interval}, {result['n']:,} examples)"


def _stopped(result: Mapping[str, Any]) -> str:
    return f", stopped by {result['stopped']}" if result.get("stopped") else ""
