"""The last layers of a transformers classifier in a bank: every sample runs those of its own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from petkit.artifacts import Artifact
from petkit.errors import InputError
from petkit.serving.bank_insert import Request

LINEAR_HEAD = ("head.weight", "head.bias")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False, slots=True)
class OwnHead:
    """What an adapter keeps of the last layers; they run inside the model, which pads the classes.

    Args:
        tensors: parameters by full name.
        classes: how many logits are this adapter's; 0 takes them all.
    """

    tensors: Mapping[str, Tensor]
    classes: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Cut padded logits (samples, most classes) to (samples, classes)."""
        return logits[:, : self.classes or None]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class OwnLayer(nn.Module):
    """A layer whose parameters are each sample's own.

    Args:
        layer: the layer, of which only the computation is used.
        request: the batch in flight.
    """

    def __init__(self, layer: nn.Module, request: Request) -> None:
        super().__init__()
        self.layer, self._request = layer, request
        self._states: dict[int, dict[str, Tensor]] = {}

    def fill(self, slot: int, state: dict[str, Tensor]) -> None:
        """Keep the parameters of a slot, by their names in the layer."""
        self._states[slot] = state

    def clear(self, slot: int) -> None:
        """Forget the parameters of a slot."""
        self._states.pop(slot, None)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, ..., features) of x (batch, ..., in), padded with zeros to the widest sample's."""
        slots = self._request.slots.tolist()
        if len(slots) != len(x):
            raise InputError(f"a layer's input must have {len(slots)} samples, got {len(x)}")
        rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            rows.setdefault(slot, []).append(row)
        parts = [functional_call(self.layer, self._states[slot], (x[own],)) for slot, own in rows.items()]
        widest = max(part.shape[-1] for part in parts)
        padded = torch.cat([functional.pad(part, (0, widest - part.shape[-1])) for part in parts])
        order = [row for own in rows.values() for row in own]
        return torch.empty_like(padded).index_copy_(0, torch.tensor(order, device=x.device), padded)


class OwnLayers:
    """All layers that the adapters of a bank bring beside their packed matrices.

    Args:
        model: the host, changed in place: the layers are replaced.
        names: parameters that every adapter brings, by full name.
        request: the batch in flight.

    Raises:
        InputError: the host has no such parameter.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], request: Request) -> None:
        known = dict(model.named_parameters())
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(f"{unknown[0]} of the adapters is no parameter of the base")
        self._layers: dict[str, OwnLayer] = {}
        for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
            host, _, child = path.rpartition(".")
            layer = OwnLayer(model.get_submodule(path), request)
            setattr(model.get_submodule(host), child, layer)
            self._layers[path] = layer

    def fill(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep an adapter's parameters, by full name."""
        for path, layer in self._layers.items():
            state = {
                name.rpartition(".")[2]: tensor
                for name, tensor in tensors.items()
                if name.rpartition(".")[0] == path
            }
            layer.fill(slot, state)

    def clear(self, slot: int) -> None:
        """Forget an adapter's parameters."""
        for layer in self._layers.values():
            layer.clear(slot)


def own_shapes(artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that an adapter brings beside packed matrices and a linear head.

    Args:
        artifact: the adapter.

    Returns:
        Shapes by full name; the classes of the last layer stand for -1.
    """
    classes = _class_count(artifact)
    return {
        name: tuple(-1 if axis == 0 and size == classes else size for axis, size in enumerate(raw.shape))
        for name, raw in artifact.raw_dense.items()
        if name not in LINEAR_HEAD
    }


def make_own_head(artifact: Artifact, device: torch.device) -> OwnHead:
    """The last layers of an artifact.

    Args:
        artifact: with its layers as dense tensors.
        device: where to.

    Returns:
        The parameters in float32.
    """
    dense = artifact.dense
    tensors = {name: dense[name].to(device, torch.float32) for name in own_shapes(artifact)}
    return OwnHead(tensors, _class_count(artifact))


def _class_count(artifact: Artifact) -> int:
    task = artifact.manifest.task
    return len(task.classes) if task else 0
