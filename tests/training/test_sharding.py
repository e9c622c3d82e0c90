"""Shards on two gloo processes give what whole weights give, and one process gives too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from petkit.errors import ConfigError
from petkit.methods.tropd.recipe import plan
from petkit.training.context import RunContext
from petkit.training.distributed import World
from petkit.training.sharding import (
    Together,
    blocks_of,
    is_sharded,
    own_part,
    shared_out,
    whole_tensor,
)
from tests.methods.tropd import tiny
from tests.methods.tropd.served import Served
from tests.rollout.fault_server import FaultServer, serving
from tests.training import sharded_runs

# Sums over processes are in another order; AdamW divides by the root of moments, and the rate is 1e-2.
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
# Fifteen words are few: matrices of 16 rows and a table of 19 are not all even.
ROWS = 19


def test_what_is_not_sharded_stays_as_it_is() -> None:
    model = nn.Linear(2, 2)
    placement = Together()
    with placement.whole(model) as whole, placement.together():
        assert whole is model is placement.finished(model)
    assert placement.through(lambda: 3) == 3
    assert not is_sharded(dict(model.named_parameters()))
    assert own_part(model.weight) is model.weight
    assert torch.equal(whole_tensor(model.weight), model.weight)
    assert shared_out(model.weight, model.bias) is model.weight


def test_blocks_inside_of_blocks_come_first() -> None:
    class Block(nn.Sequential):
        pass

    model = nn.Sequential(Block(Block(nn.ReLU())), nn.ReLU())
    assert blocks_of(model) == []
    model._no_split_modules = ["Block"]  # type: ignore[assignment]
    outer = model[0]
    assert blocks_of(model) == [outer[0], outer]  # type: ignore[index]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and prompts."""
    root: Path = tmp_path_factory.mktemp("sharded")
    tiny.save_model(root / "student", 0, rows=ROWS)
    tiny.save_model(root / "teacher", 1, rows=ROWS)
    tiny.save_model(root / "tied", 2, rows=ROWS, tied=True)
    tiny.write_questions(root / "questions.jsonl")
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[FaultServer]:
    """Holds a whole student and loads what it is told to."""
    with serving() as found:
        yield found.play(Served(folder / "student"))


@pytest.fixture(scope="module")
def root(folder: Path, server: FaultServer) -> Path:
    """Where two processes and this one have left their runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # torch warns of what it cannot shard rightly.
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "error:FSDP2"}
    command = [sys.executable, "-m", "tests.training.sharded_runs", str(folder), server.url]
    processes = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    alone = World()
    sharded_runs.run(folder, "alone", alone, **sharded_runs.selecting(folder))
    sharded_runs.run(folder, "alone-gkd", alone, **sharded_runs.GKD)
    try:
        ended = [(process.communicate(timeout=240)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [code for _, code in ended] == [0, 0], "".join(errors[-3000:] for errors, _ in ended)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def check_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, msg=lambda text, at=name: f"{at}: {text}", **CLOSE)


def check_curves(expected: Path, found: Path, rows: int) -> None:
    pairs = list(zip(tiny.records(expected), tiny.records(found), strict=False))
    assert len(pairs) == rows
    for one, other in pairs:
        for row in (one, other):
            for rate in ("examples_per_second", "tokens_per_second"):
                row.pop(rate, None)
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharded", "resumed-sharded", "resumed-whole"])
def test_shards_give_what_one_process_gives(root: Path, name: str) -> None:
    # Four steps, and the reward of two epochs: the artifact is of the first, the checkpoint of the second.
    check_curves(root / "alone", root / name, 6)
    # The norm is cut in some steps and not in all.
    norms = [row["gradient_norm"] for row in tiny.records(root / name) if "gradient_norm" in row]
    assert min(norms) < 2.0 < max(norms)
    check_close(weights(root / "alone"), weights(root / name))
    assert not torch.equal(
        weights(root / "student")["lm_head.weight"], weights(root / name)["lm_head.weight"]
    )
    for file in ("weights.safetensors", "optimizer.safetensors", "best.safetensors"):
        check_close(*(load_file(root / run / "checkpoint-4" / file) for run in ("alone", name)))


@pytest.mark.slow
def test_files_do_not_tell_how_weights_were_held(root: Path) -> None:
    names = [
        sorted(str(path.relative_to(root / run)) for path in (root / run).rglob("*"))
        for run in ("alone", "sharded")
    ]
    assert names[0] == names[1]
    assert (root / "alone" / "config.json").read_bytes() == (root / "sharded" / "config.json").read_bytes()


@pytest.mark.slow
def test_shards_go_on_from_whole_weights_with_one_table_for_both_ends(root: Path) -> None:
    check_curves(root / "whole-tied", root / "resumed-tied", 4)
    check_close(weights(root / "whole-tied"), weights(root / "resumed-tied"))


@pytest.mark.slow
def test_a_student_may_pass_through_its_shards_twice_and_in_lower_precision(root: Path) -> None:
    check_curves(root / "alone-gkd", root / "gkd", 2)


@pytest.mark.slow
def test_logits_may_be_computed_whole(root: Path) -> None:
    check_curves(root / "alone", root / "logits", 2)


@pytest.mark.slow
def test_a_server_gets_the_weights_of_all_shards(root: Path, server: FaultServer) -> None:
    loads = [path for path in server.paths if path == "/update_weights_from_disk"]
    # Each of two processes asks whether it can be asked; the first one gives weights before both steps.
    assert len(loads) == 4
    drifts = [row["server_drift_max"] for row in tiny.records(root / "served")]
    assert len(drifts) == 2
    assert max(drifts) < 1e-4


@pytest.mark.slow
def test_all_processes_save_when_one_loses_its_teacher(root: Path) -> None:
    messages = [(root / f"gone-{rank}.txt").read_text() for rank in range(2)]
    assert messages == ["another process failed, which its own message explains", "nobody is there"]
    assert [path.name for path in (root / "gone").glob("checkpoint-*")] == ["checkpoint-1"]


def test_one_process_has_nobody_to_share_with(folder: Path) -> None:
    config = sharded_runs.config_of(folder, "nobody", 1, **sharded_runs.SHARDED)
    with pytest.raises(ConfigError, match="fsdp2 needs two processes or more, got 1: start them with"):
        plan(config, RunContext(Path(config.output)))
