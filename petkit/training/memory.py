"""How much memory a training step takes: counted on one example, not guessed from layer names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petkit.training.evaluate import StepFunction

ADAM_COPIES = 3  # gradient and two moments


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process while it trains; the framework itself is not counted."""

    weights: int
    """Parameters and buffers, frozen and trainable."""

    optimizer: int
    """Gradients and AdamW's moments of the trainable parameters."""

    activations: int
    """What a micro-batch keeps for the backward pass."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.activations


def estimate_memory(model: nn.Module, step: StepFunction, batch: Any, micro_batch: int) -> MemoryEstimate:
    """Run one example forwards and count what autograd keeps of it.

    Args:
        model: in the mode in which it will train; nothing of it changes.
        step: the step function.
        batch: a batch of one example, on the model's device.
        micro_batch: examples of one forward pass.

    Returns:
        The estimate; activations grow in proportion to the micro-batch.

    Source:
        torch.autograd.graph.saved_tensors_hooks.
    """
    held = [*model.parameters(), *model.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in held}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # The output holds the graph, so that no storage is freed and counted again under the same address.
        output = step(model, batch)
    del output
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return MemoryEstimate(
        weights=sum(tensor.numel() * tensor.element_size() for tensor in held),
        optimizer=ADAM_COPIES * sum(tensor.numel() * tensor.element_size() for tensor in trainable),
        activations=sum(saved.values()) * micro_batch,
    )
