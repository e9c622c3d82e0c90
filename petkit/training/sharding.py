"""A model that is shared out among processes (FSDP2), and one that is not, behind the same four calls.

Generation takes a number of forward passes that differs between processes, and sharded layers gather their
weights from all processes in each. So generation gets a copy of all weights, gathered before and let go
afterwards, and the passes that learn, whose number is the same everywhere, use the shards.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from petkit.training.distributed import World

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Placement(Protocol):
    """Where the weights of a model are while it trains."""

    def whole(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The model with all of its weights on every process, for passes without a gradient."""

    def through(self, work: Callable[[], Result]) -> Result:
        """Run what uses the model's layers with a gradient, the same on every process."""

    def together(self) -> AbstractContextManager[None]:
        """Around work that may fail on one process while others go on to wait for it."""

    def finished(self, model: nn.Module) -> nn.Module:
        """The model with all of its weights, to stay."""


class Together:
    """Every process, or the only one, holds the whole model."""

    def whole(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The model."""
        return nullcontext(model)

    def through(self, work: Callable[[], Result]) -> Result:
        """Run it."""
        return work()

    def together(self) -> AbstractContextManager[None]:
        """Nothing: no process waits for another before the end of a step."""
        return nullcontext()

    def finished(self, model: nn.Module) -> nn.Module:
        """The model."""
        return model


class Sharded:
    """Every process holds its part of each parameter, of its gradient and of the optimiser's moments.

    Blocks of the model gather their weights when they are computed and let them go afterwards; what is
    outside of blocks (embedding, last norm, head) stays gathered from the forward to the end of the backward
    pass. Gradients are sums over the processes.

    Args:
        model: of transformers, the same on every process; its parameters become shards in place.
        world: the processes, two or more.

    Source:
        torch.distributed.fsdp.fully_shard (FSDP2).
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        world.check_equal(list(model.parameters()), "the initial trainable weights")
        self._world, self._device = world, next(model.parameters()).device
        # The same storage at first, so that the copy costs nothing; sharding leaves it to the copy alone.
        shared: dict[int, Any] = {
            id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()
        }
        self._twin = copy.deepcopy(model, shared)
        _fully_shard(model, world)
        self._model = model
        self._release()

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """A copy of the model with all of its weights as they are now; they are let go at the end."""
        self._gather()
        try:
            yield self._twin
        finally:
            self._release()

    def through(self, work: Callable[[], Result]) -> Result:
        """Run what uses layers and the head's weight of the model, as one forward pass of it."""
        # Weights that autocast kept from a pass before would get their gradients after they were let go.
        torch.clear_autocast_cache()
        run: Callable[[Callable[[], Result]], Result] = self._model.run_work  # type: ignore[assignment]
        return run(work)

    def together(self) -> AbstractContextManager[None]:
        """Let all processes fail when one does, see `World.together`."""
        return self._world.together(self._device)

    def finished(self, model: nn.Module) -> nn.Module:
        """A copy of the model with all of its weights, on every process."""
        self._gather()
        return self._twin

    def _gather(self) -> None:
        shards = dict(self._model.named_parameters())
        for name, parameter in self._twin.named_parameters():
            parameter.data = whole_tensor(shards[name])

    def _release(self) -> None:
        for parameter in self._twin.parameters():
            parameter.data = parameter.data.new_empty(0)


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether parameters are shards.

    Args:
        tensors: parameters by name.

    Returns:
        True where one is. Their class is not asked for: its import takes seconds.
    """
    return any(hasattr(tensor, "full_tensor") for tensor in tensors.values())


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds.

    Args:
        tensor: sharded or not.

    Returns:
        The part, in the same memory; it may be empty. A tensor that is not sharded is returned as it is.
    """
    with torch.no_grad():
        found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor; all processes must take part.

    Args:
        tensor: sharded or not.

    Returns:
        All of it, without a gradient; a tensor that is not sharded is returned as it is.
    """
    found: Any = tensor.detach()
    return found.full_tensor() if hasattr(found, "full_tensor") else found  # type: ignore[no-any-return]


def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Give a tensor the device of another, and its shards where that has some.

    Args:
        tensor: whole, the same on every process.
        like: of the same shape.

    Returns:
        The tensor, or this process's part of it.
    """
    if not hasattr(like, "full_tensor"):
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # Each process cuts its part out of what it has: nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _fully_shard(model: nn.Module, world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(next(model.parameters()).device.type, (world.size,))
    blocks = blocks_of(model)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # `fit` divides the sum of all processes by their joint count.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.run_work = MethodType(_run_work, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "run_work")
    log.info("shared the weights of %d blocks out among %d processes", len(blocks), world.size)


def _run_work(_: nn.Module, work: Callable[[], Any]) -> Any:
    from torch.utils._pytree import tree_map_only

    # What starts the backward pass hangs on the results, and would be lost with a view that is written to.
    return tree_map_only(Tensor, lambda one: one.clone() if one._is_view() else one, work())


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model of transformers, one of which is gathered at a time.

    Args:
        model: names the classes of its blocks, as it does for placing them on devices.

    Returns:
        The blocks, those inside of others first; none where it names none, and all weights are then
        gathered at once.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    return found[::-1]
