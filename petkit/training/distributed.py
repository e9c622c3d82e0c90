"""Several processes as one: ranks, sums over processes, and who may print.

Only adapters and a head are trained, a few megabytes. Their gradients are summed in one flat buffer per step
together with the loss, the counts and the stop flags, instead of wrapping the model: state-dict names stay
as they are, frozen weights are never touched, and a process may have no example of a short last batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from petkit.errors import InputError, PetkitError

log = logging.getLogger(__name__)


ELSEWHERE = "another process failed, which its own message explains"


class PassingElsewhere(PetkitError):
    """Every process that failed may succeed later, and this one did not fail."""

    passing = True


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all processes, in place.

        Args:
            tensors: tensors of one device, the same shapes on every process; float32 or float64 kept apart.
        """
        if self.size == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            group = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Around work that may fail on one process while others go on to wait for it: then all fail.

        Args:
            device: where the processes exchange what happened.

        Raises:
            PetkitError: the process's own, or one that tells of another's. It is a passing one where every
                failure is, so that all processes save together or none does.
        """
        caught: PetkitError | None = None
        try:
            yield
        except PetkitError as error:
            if self.size == 1:
                raise
            caught = error
        votes = [float(caught is not None), float(caught is not None and caught.passing)]
        counts = torch.tensor(votes, dtype=torch.float64, device=device)
        self.sum_([counts])
        failed, passing = counts.tolist()
        if not failed:
            return
        if passing == failed:
            raise caught or PassingElsewhere(ELSEWHERE)
        raise PetkitError(str(caught or ELSEWHERE)) from caught

    def check_equal(self, tensors: Sequence[Tensor], what: str) -> None:
        """Refuse to go on when the processes hold different values.

        Args:
            tensors: tensors that must be the same on every process.
            what: their name in the message.

        Raises:
            InputError: a process differs.
        """
        if self.size == 1:
            return
        sums = torch.stack([tensor.detach().double().sum().cpu() for tensor in tensors]).to(tensors[0].device)
        reference = sums.clone()
        distributed.broadcast(reference, src=0)
        differs = (reference != sums).any().double().reshape(1)
        self.sum_([differs])
        if differs.item():
            raise InputError(
                f"{what} must be the same on all {self.size} processes, got {int(differs.item())} that "
                "differ: "
                "give every process the same files, versions and seed"
            )


def start(device: torch.device) -> World:
    """Join the processes that `torchrun` or `accelerate launch` started; alone without a launcher.

    Args:
        device: where this process computes; the CPU uses gloo, CUDA uses nccl.

    Returns:
        This process's place; the log warns when accelerate started fewer processes than it was asked for.

    Source:
        accelerate's `PartialState` reads the launchers' environment.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        _warn_of_missing_processes()
        return World()
    # This module takes the group of all processes as a default argument when it is imported. Imported after
    # the group exists, it would keep gloo's threads alive beyond `finish`, and one of them that still holds a
    # tensor when the interpreter goes down aborts the process.
    import torch.distributed.nn  # noqa: F401
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return World(rank=state.process_index, size=state.num_processes)


def _warn_of_missing_processes() -> None:
    # accelerate names a master when several processes are asked for, but starts one only without --multi_gpu.
    if "WORLD_SIZE" not in os.environ and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys():
        log.warning(
            "accelerate launch was asked for several processes and started one: use "
            "`accelerate launch --multi_gpu`, also on CPUs, or `torchrun --nproc-per-node N -m petkit`"
        )


def finish(world: World) -> None:
    """Leave the process group.

    Args:
        world: the place that `start` gave.
    """
    if world.size > 1 and distributed.is_initialized():
        distributed.destroy_process_group()
