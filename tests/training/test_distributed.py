"""Two gloo processes on this machine, started as the launchers start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from petkit.training.distributed import World, finish, start


def test_alone_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = start(torch.device("cpu"))
    assert (world, world.is_main) == (World(0, 1), True)
    value = torch.ones(2)
    world.sum_([value])
    world.check_equal([value], "it")
    assert torch.equal(value, torch.ones(2))
    finish(world)


SCRIPT = """
    import sys
    import weakref
    import torch
    from petkit.errors import InputError
    from petkit.training.distributed import finish, start

    world = start(torch.device("cpu"))
    single, double = torch.full((2, 2), float(world.rank + 1)), torch.tensor([0.5], dtype=torch.float64)
    world.sum_([single, double])
    assert single.tolist() == [[3.0, 3.0], [3.0, 3.0]] and double.item() == 1.0
    world.check_equal([single], "sums")
    try:
        world.check_equal([torch.tensor(float(world.rank))], "the ranks")
    except InputError as error:
        assert "the ranks must be the same on all 2 processes, got 1 that differ" in str(error)
    else:
        sys.exit("nothing was raised")
    # Models import this after the processes have met. Nothing may hold the group beyond the end: a thread of
    # gloo's that outlives the interpreter aborts the process.
    import torch.distributed.nn
    group = weakref.ref(torch.distributed.group.WORLD)
    finish(world)
    assert group() is None
"""


@pytest.mark.slow
def test_two_processes_add_up_and_compare(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
