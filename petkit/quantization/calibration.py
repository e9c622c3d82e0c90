"""What a few batches of real inputs say about an adapter: moments of what its matrices see, and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from petkit.data.tokens import at_targets
from petkit.errors import InputError
from petkit.models.inserts import inserts
from petkit.models.loaded import compute_logits

Batch = Mapping[str, Tensor]


class _Moments:
    """Sums of X^T X by matrix; padding, which no output depends on, is left out."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.mask: Tensor | None = None

    def collector(self, name: str) -> Callable[..., None]:
        def collect(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.add(name, args[0].detach())

        return collect

    def add(self, name: str, inputs: Tensor) -> None:
        if self.mask is not None and inputs.shape[:-1] == self.mask.shape:
            inputs = inputs[self.mask.bool()]
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        # Each batch's product is rounded once; the sum over batches is kept in float64.
        product = (rows.T @ rows).double().cpu()
        self.sums[name] = self.sums[name] + product if name in self.sums else product
        self.rows[name] = self.rows.get(name, 0) + rows.shape[0]


@torch.no_grad()
def second_moments(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Run calibration batches and average x x^T over what enters each adapter matrix.

    Args:
        model: a model with 32-bit adapters; runs in evaluation mode, its former mode is restored.
        batches: collated inputs, on the model's device.

    Returns:
        Name of the matrix (`<site>.down`, `<site>.up`) -> float64 (in, in), the mean over all rows (tokens).

    Raises:
        InputError: there is no batch, no adapter, or an adapter that no batch reached.

    Source:
        The quadratic form of the output error, as in post-training quantisation by least squares.
    """
    moments = _Moments()
    projections = {
        f"{site}.{part}": getattr(adapter, part)
        for site, adapter in inserts(model).items()
        for part in ("down", "up")
    }
    if not projections:
        raise InputError("calibration needs a model with adapters, got none")
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.eval()
        for name, projection in projections.items():
            stack.callback(projection.register_forward_pre_hook(moments.collector(name)).remove)
        for batch in batches:
            moments.mask = batch.get("attention_mask")
            compute_logits(model, batch)
    missed = [name for name in projections if not moments.rows.get(name)]
    if missed:
        raise InputError(f"calibration needs a batch that reaches every adapter, got none for {missed[0]}")
    return {name: moments.sums[name] / moments.rows[name] for name in projections}


@torch.no_grad()
def predictions(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Run batches and keep the logits that a loss would look at.

    Args:
        model: runs in evaluation mode, its former mode is restored.
        batches: collated inputs, on the model's device; labels (batch, tokens) are those of a language
            model, -100 where a token is no target.

    Returns:
        Logits float32 (predictions, classes), all batches one after another, on the CPU.

    Raises:
        InputError: there is no batch.
    """
    training = model.training
    model.eval()
    try:
        parts = [_targeted(compute_logits(model, batch), batch.get("labels")) for batch in batches]
    finally:
        model.train(training)
    if not parts:
        raise InputError("at least one batch is needed to compare outputs, got none")
    return torch.cat(parts)


def _targeted(logits: Tensor, labels: Tensor | None) -> Tensor:
    if labels is not None and labels.ndim == 2:
        # Behind padding and inside prompts a language model's logits decide nothing.
        logits, _ = at_targets(logits, labels)
    return logits.float().reshape(-1, logits.shape[-1]).cpu()
