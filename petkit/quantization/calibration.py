"""What a few batches of real inputs say about an adapter: moments of what its matrices see, and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from petkit.errors import InputError
from petkit.models.inserts import inserts

Forward = Callable[[nn.Module, Any], Tensor]


@torch.no_grad()
def second_moments(model: nn.Module, batches: Iterable[Any], forward: Forward) -> dict[str, Tensor]:
    """Run calibration batches and sum X^T X of what enters each adapter matrix.

    Args:
        model: a model with 32-bit adapters; put into evaluation mode, its former mode restored.
        batches: inputs, each as `forward` takes them.
        forward: runs the model on one batch.

    Returns:
        Name of the matrix (`<site>.down`, `<site>.up`) -> float64 (in, in), the mean over all rows (tokens).

    Raises:
        InputError: there is no batch, no adapter, or an adapter that no batch reached.

    Source:
        The quadratic form of the output error, as in post-training quantisation by least squares.
    """
    adapters = inserts(model)
    projections = {
        f"{site}.{part}": getattr(insert, part)
        for site, insert in adapters.items()
        for part in ("down", "up")
    }
    if not projections:
        raise InputError("calibration needs a model with adapters, got none")
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    training = model.training
    model.eval()
    with ExitStack() as hooks:
        for name, projection in projections.items():
            handle = projection.register_forward_pre_hook(_collector(name, sums, rows))
            hooks.callback(handle.remove)
        hooks.callback(model.train, training)
        count = sum(1 for batch in batches if forward(model, batch) is not None)
    missed = sorted(set(projections) - set(sums))
    if count == 0 or missed:
        raise InputError(
            f"calibration needs at least one batch that reaches every adapter, got {count} batches"
            + (f", none of which reached {missed[0]}" if count else "")
        )
    return {name: sums[name] / rows[name] for name in projections}


def _collector(name: str, sums: dict[str, Tensor], rows: dict[str, int]) -> Callable[..., None]:
    def collect(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs = args[0].detach().reshape(-1, args[0].shape[-1]).float()
        # Each batch's product is rounded once; the sum over batches is kept in float64.
        product = (inputs.T @ inputs).double().cpu()
        sums[name] = sums[name] + product if name in sums else product
        rows[name] = rows.get(name, 0) + inputs.shape[0]

    return collect


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[Any], forward: Forward) -> Tensor:
    """Run batches and keep their logits.

    Args:
        model: put into evaluation mode, its former mode restored.
        batches: inputs, each as `forward` takes them.
        forward: runs the model on one batch and returns logits (..., classes).

    Returns:
        Logits float32 (predictions, classes), all batches one after another, on the CPU.

    Raises:
        InputError: there is no batch.

    Source:
        petkit.
    """
    training = model.training
    model.eval()
    try:
        parts = [forward(model, batch) for batch in batches]
    finally:
        model.train(training)
    if not parts:
        raise InputError("at least one batch is needed to compare outputs, got none")
    return torch.cat([part.float().reshape(-1, part.shape[-1]).cpu() for part in parts])
