"""What each of two processes does for test_sharding.py: whole students, in one launch since it takes seconds.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python -m tests.training.sharded_runs FOLDER SERVER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from petkit.errors import PetkitError
from petkit.methods.tropd import recipe
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.teachers import Teachers
from petkit.rollout import scoring
from petkit.rollout.connection import ServerGone
from petkit.training.context import RunContext
from petkit.training.distributed import World, finish, start
from tests.methods.tropd import tiny

SHARDED = {"training__sharding": "fsdp2"}
GKD = {"objective__kind": "gkd", "training__precision": "bf16", "training__max_steps": 2}
TIED = {"student": "tied"}


def config_of(root: Path, name: str, processes: int, **changes: Any) -> DistillConfig:
    """A run of four steps of four prompts, whatever the number of processes."""
    content = {
        "student__tuning": "full",
        "adapter": {},
        "training__batch_size": 4 // processes,
        "training__gradient_accumulation": 2 // processes,
        "training__max_gradient_norm": 2.0,
        "training__checkpoint_steps": 2,
        **changes,
    }
    own, other = (str(root / part) for part in (content.pop("student", "student"), "teacher"))
    return DistillConfig(**tiny.content(root / name, own, other, str(root / "questions.jsonl"), **content))


def selecting(root: Path) -> dict[str, Any]:
    """Keys of a run that keeps its best step."""
    found = {"select": "validation", "evaluate_every": 1}
    return {"data__validation": str(root / "questions.jsonl")} | {
        f"training__{k}": v for k, v in found.items()
    }


def run(root: Path, name: str, world: World, resume: int | None = None, **changes: Any) -> Any:
    """One run into a folder of this name."""
    config = config_of(root, name, world.size, **changes)
    checkpoint = None if resume is None else Path(config.output) / f"checkpoint-{resume}"
    return recipe.run(config, RunContext(Path(config.output), torch.device("cpu"), world, checkpoint))


def resumed(root: Path, world: World, begun: str, name: str, **changes: Any) -> None:
    """Go on behind step 2 of another run."""
    if world.is_main:
        shutil.copytree(root / begun / "checkpoint-2", root / name / "checkpoint-2")
        shutil.copy(root / begun / "metrics.jsonl", root / name)
    world.sum_([torch.zeros(1)])
    run(root, name, world, resume=2, **changes)


def gone_on_one(root: Path, world: World) -> str:
    """The message of a run whose second process loses its teacher in its second step."""
    asked, own = [0], Teachers.scores

    def scores(self: Teachers, *arguments: Any) -> Any:
        asked[0] += 1
        if world.rank == 1 and asked[0] == 2:
            raise ServerGone("nobody is there")
        return own(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teachers, "scores", scores)
        with pytest.raises(PetkitError) as caught:
            run(root, "gone", world, **SHARDED)
    assert caught.value.passing
    return str(caught.value)


def main(root: Path, server: str) -> None:
    """Everything, one run after the other."""
    torch.set_num_threads(1)
    world = start(torch.device("cpu"))
    run(root, "sharded", world, **selecting(root), **SHARDED)
    resumed(root, world, "sharded", "resumed-sharded", **selecting(root), **SHARDED)
    resumed(root, world, "sharded", "resumed-whole", **selecting(root))
    run(root, "whole-tied", world, **TIED)
    resumed(root, world, "whole-tied", "resumed-tied", **TIED, **SHARDED)
    run(root, "gkd", world, **GKD, **SHARDED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_plain_head", lambda model: None)
        run(root, "logits", world, training__max_steps=2, **SHARDED)
    served = {"rollout__model": f"{server}#student", "rollout__served__server": "sglang"}
    run(root, "served", world, training__max_steps=2, **served, **SHARDED)
    (root / f"gone-{world.rank}.txt").write_text(gone_on_one(root, world))
    finish(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
