"""A merge of folders whose result stays in memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from petkit.merging.config import MergeConfig
from petkit.merging.folders import open_merge
from petkit.merging.streaming import carry_out


@dataclass
class _Memory:
    """Takes numbers where a file would."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def write(self, tensor: str, start: int, numbers: Tensor) -> None:
        self.tensors[tensor].view(-1)[start : start + len(numbers)] = numbers


def merged_in_memory(config: MergeConfig, seed: int = 0) -> dict[str, Tensor]:
    """Merge model folders.

    Args:
        config: what is asked for.
        seed: of methods that draw.

    Returns:
        The merged tensors by name.

    Raises:
        PetkitError: as `merge_folders`.
    """
    with ExitStack() as stack:
        plan = open_merge(config, seed, stack).plan
        found = {one.name: torch.empty(one.slices.shape, dtype=one.dtype) for one in plan.tensors}
        carry_out(plan, _Memory(found))
    return found
