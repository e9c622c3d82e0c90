"""The adapter module itself, and how it takes part in the forward pass of a model that does not know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from petkit.errors import InputError
from petkit.models.projections import Projection
from petkit.models.sites import Site


class Insert(nn.Module):
    """A bottleneck beside a frozen module: scale * up(dropout(activation(down(x)))).

    Args:
        site: Where it sits.
        down: Map from the site's input to the bottleneck.
        up: Map from the bottleneck to the site's output.
        activation: "relu", or "identity" (lora).
        dropout: Probability of dropping a bottleneck unit, in training only.
        scale: Factor on the result.

    It is a child of its host and acts through two forward hooks. Both are bound methods of this module,
    because copy.deepcopy and pickle rebind bound methods to the copy, which closures over the original
    would not survive; torch.compile traces them, and they run again wherever a block is recomputed by
    gradient checkpointing.

    Source: Jie, Wang, Deng 2023 (arXiv 2307.16867); Chen et al. 2022 (AdaptFormer); Hu et al. 2021 (LoRA).
    """

    def __init__(
        self,
        site: Site,
        down: Projection,
        up: Projection,
        activation: Literal["relu", "identity"],
        dropout: float,
        scale: float,
    ) -> None:
        super().__init__()
        self.site, self.activation, self.dropout, self.scale = site, activation, dropout, scale
        self.down, self.up = down, up
        self._captured: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The addition (..., out) for an input x (..., in)."""
        hidden = self.down(x)
        if self.activation == "relu":
            hidden = functional.relu(hidden)
        hidden = functional.dropout(hidden, self.dropout, self.training)
        addition: Tensor = self.up(hidden)
        return addition if self.scale == 1.0 else addition * self.scale

    def attach(self, model: nn.Module) -> None:
        """Register this module's hooks in the host model."""
        model.get_submodule(self.site.add).register_forward_hook(self.add_to_output, with_kwargs=True)
        if self.site.capture != self.site.add:
            model.get_submodule(self.site.capture).register_forward_pre_hook(
                self.capture_input, with_kwargs=True
            )

    def capture_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the first input of the captured module until the host's output is there."""
        self._captured = _first_tensor(args, kwargs)

    def add_to_output(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Return the host's output with this adapter's contribution added."""
        first = output[0] if isinstance(output, tuple) else output
        total = self._add(first, self(self._input(args, kwargs, first)))
        return (total, *output[1:]) if isinstance(output, tuple) else total

    def _input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        if self.site.source == "output":
            return output
        if self.site.capture == self.site.add:
            return _first_tensor(args, kwargs)
        captured, self._captured = self._captured, None
        if captured is None:
            raise InputError(
                f"{self.site.capture} did not run before {self.site.add}: {self.site.name} has no input"
            )
        if output.requires_grad and not captured.requires_grad:
            # A reentrant checkpoint computes the captured tensor without gradient and would train on
            # silently.
            raise InputError(f"{self.site.name}: checkpointing must be non-reentrant (use_reentrant=False)")
        return captured

    def _add(self, output: Tensor, addition: Tensor) -> Tensor:
        addition = addition.to(output.dtype)
        if addition.shape[-1] == output.shape[-1]:
            # Some blocks (SAM's, Swin's) flatten the grid of tokens for the MLP and unfold it for their
            # output.
            return output + addition.reshape(output.shape)
        # A slice of a fused map, whose fresh output nothing else holds: add in place, not to a padded copy.
        output.narrow(-1, self.site.offset, self.site.out_features).add_(addition)
        return output

    def extra_repr(self) -> str:
        """Show what the children's reprs do not."""
        return f"activation={self.activation}, dropout={self.dropout}, scale={self.scale}"


def detach_all(model: nn.Module) -> None:
    """Remove the hooks of every Insert from the model, also from a deep copy, whose hooks have no handles.

    Args:
        model: The host model, changed in place.
    """
    for module in model.modules():
        for hooks, with_kwargs in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key in [
                key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Insert)
            ]:
                hooks.pop(key)
                with_kwargs.pop(key, None)


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    value = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(value, torch.Tensor):
        raise InputError(f"an adapter's input must be a tensor, got {type(value).__name__}")
    return value
