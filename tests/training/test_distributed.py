"""Two gloo processes on this machine, started as the launchers start them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from petkit.errors import PetkitError
from petkit.training.distributed import World, finish, start


def test_alone_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = start(torch.device("cpu"))
    assert (world, world.is_main) == (World(0, 1), True)
    value = torch.ones(2)
    world.sum_([value])
    world.check_equal([value], "it")
    assert torch.equal(value, torch.ones(2))
    with pytest.raises(PetkitError, match="own"), world.together(torch.device("cpu")):
        raise PetkitError("own")
    finish(world)


MISSING = (
    "accelerate launch was asked for several processes and started one: use `accelerate launch --multi_gpu`"
)
LAUNCHER = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        (LAUNCHER, True),
        ({**LAUNCHER, "WORLD_SIZE": "1"}, False),
        ({"ACCELERATE_USE_CPU": "True"}, False),
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, False),
    ],
)
def test_processes_that_were_not_started_are_missed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    environment: dict[str, str],
    warned: bool,
) -> None:
    for name in ("WORLD_SIZE", *LAUNCHER):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        assert start(torch.device("cpu")) == World()
    assert [MISSING in message for message in caplog.messages] == [True] * warned


@pytest.mark.slow
@pytest.mark.parametrize(("count", "warned"), [(1, False), (2, True)])
def test_accelerate_says_how_many_it_was_asked_for(tmp_path: Path, count: int, warned: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        'import logging, torch\nlogging.basicConfig(format="%(message)s")\n'
        "from petkit.training.distributed import start\n"
        'assert start(torch.device("cpu")).size == 1\n'
    )
    flags = ["--cpu", "--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(script)]
    kept = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", *LAUNCHER)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=kept)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(MISSING) == int(warned)


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
