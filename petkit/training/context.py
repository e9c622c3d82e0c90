"""What surrounds a run: folder, device, processes, messages. Made by the command, read by the recipes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from petkit.training.distributed import World


@dataclass(frozen=True)
class StepReport:
    """What an observer learns after an optimiser step."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    examples_per_second: float
    terms_per_second: float = 0.0
    """Terms of the loss, such as tokens, over the time of the steps of this process so far."""


def _silent(_: object) -> None:
    return None


def _unseen(_: str, __: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(_silent)


@dataclass(frozen=True)
class RunContext:
    """The surroundings of a run, none of which changes its weights."""

    folder: Path
    """Where metrics.jsonl, checkpoints and the artifact go."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the model computes."""

    world: World = field(default_factory=World)
    """This process among the others."""

    resume: Path | None = None
    """Checkpoint to go on from."""

    overwrite: bool = False
    """Replace what an earlier run left in the folder."""

    restart: bool = False
    """Begin again in a folder whose run saved no checkpoint."""

    watch: Callable[[StepReport], None] = _silent
    """Called after every optimiser step, for progress bars."""

    stage: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = _unseen
    """Opened around work before the first step, by its name and its count; told how much more is done."""
