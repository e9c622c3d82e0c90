"""A server that holds the student writes what the student here would, as long as it gets its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petkit.errors import ConfigError, InputError
from petkit.methods.tropd.recipe import plan, run
from petkit.rollout.connection import ServerGone
from petkit.training.checkpoint import newest
from tests.methods.tropd import tiny
from tests.methods.tropd.served import Served
from tests.rollout.fault_server import refuse, serving
from tests.rollout.token_stub import after, cut, drop, vllm

TENSORS = "adapter_packed.safetensors"


@pytest.fixture
def server():
    with serving() as found:
        yield found


@pytest.fixture
def served(server, models):
    found = Served(models(0))
    server.play(found)
    return found


@pytest.fixture
def config(server, recipe, tmp_path):
    """`config("vllm", rollout__stale=True)` is a recipe whose student is served."""

    def make(kind="vllm", **changes):
        full = {"student__tuning": "full", "adapter": {}} if kind == "sglang" else {}
        asked = {"rollout__model": f"{server.url}#student", "rollout__served__attempts": 1}
        if kind != "vllm":
            asked["rollout__served__server"] = kind
        return recipe(**{**full, **asked, "output": tmp_path / "run", **changes})

    return make


def go(config, **more):
    return run(config, tiny.context(config, **more))


def drifts(config, name="server_drift"):
    return [row[name] for row in tiny.records(config.output)]


@pytest.mark.parametrize("bits", [1, 32])
def test_a_served_student_learns_what_one_here_does(config, recipe, served, tmp_path, bits):
    own, here = config(adapter__bits=bits), recipe(adapter__bits=bits, output=tmp_path / "here")
    go(own)
    go(here)
    assert served.loads == 4
    # What the server was given is in the artifact now.
    assert not Path(f"{own.output}.served").exists()
    for one, other in zip(tiny.records(here.output), tiny.records(own.output), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-5)
        assert other["response_length"] == one["response_length"]
    assert max(drifts(own, "server_drift_max")) < 1e-4
    one, other = (load_file(Path(folder) / TENSORS) for folder in (here.output, own.output))
    if bits == 32:
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-2, atol=1e-3)


def test_a_whole_student_is_served_by_sglang(config, served):
    own = config("sglang")
    go(own)
    assert served.loads == 4
    assert max(drifts(own, "server_drift_max")) < 1e-4
    assert set(load_file(Path(own.output) / "model.safetensors")) <= set(served.model.state_dict())


def test_weights_grow_old_between_updates(config, served):
    own = config(rollout__refresh_steps=2)
    go(own)
    assert served.loads == 2
    means, largest = drifts(own), drifts(own, "server_drift_max")
    assert max(means[0], means[2]) < 1e-4 < min(means[1], means[3])
    assert all(mean <= most for mean, most in zip(means, largest, strict=True))


def test_a_server_may_keep_its_weights(config, served, caplog):
    own = config(rollout__stale=True)
    go(own)
    assert served.loads == 0
    assert "rollout.stale: the server keeps its weights" in caplog.text
    assert drifts(own)[0] < 1e-4 < drifts(own)[3]
    assert not Path(f"{own.output}.served").exists()


def test_the_cap_bounds_what_a_token_counts(config, served, tmp_path):
    def curve(name, **changes):
        own = config(rollout__stale=True, output=tmp_path / name, objective__kind="opd", **changes)
        go(own)
        return [row["gradient_norm"] for row in tiny.records(own.output)]

    # Both start with the server's own weights, where every ratio is 1.
    capped, free = curve("capped", rollout__importance_cap=1.0), curve("free", rollout__importance_cap=1e6)
    assert capped[0] == pytest.approx(free[0], rel=1e-4)
    assert capped[3] != pytest.approx(free[3], rel=1e-4)


@pytest.mark.parametrize("at", [17, -3])
def test_nothing_is_lost_when_the_server_is_gone(config, served, tmp_path, caplog, at):
    whole, broken = config(output=tmp_path / "whole"), config(output=tmp_path / "broken")
    go(whole)
    served.loads = served.draws = 0
    # In the third step: at its first responses, or when it is given the weights.
    served.fails = {at: drop}
    with pytest.raises(ServerGone):
        go(broken)
    assert "checkpoint-2: go on with --resume" in caplog.text
    served.fails = {}
    assert go(broken, resume=newest(tmp_path / "broken"))["steps"] == 4
    one, other = (load_file(tmp_path / name / TENSORS) for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_server_that_drops_delays_and_cuts_is_asked_again(config, served, recipe, tmp_path):
    whole, own = config(output=tmp_path / "whole"), config(rollout__served__attempts=3)
    go(whole)
    served.loads = served.draws = 0
    served.fails = {2: drop, 5: cut(vllm(served.model)), 9: after(0.1, refuse(503, "busy")), -2: drop}
    go(own)
    one, other = (load_file(Path(folder) / TENSORS) for folder in (whole.output, own.output))
    assert all(torch.equal(one[name], other[name]) for name in one)


def spoilt(**fields):
    def spoil(found):
        found["choices"][0] |= fields
        return found

    return spoil


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (spoilt(logprobs=None), InputError, "expected log-probabilities of"),
        (spoilt(token_ids=[]), InputError, "expected 1 to 5 tokens, got 0"),
        (spoilt(token_ids=[99]), InputError, "the server has another model"),
        (lambda found: b"{garbled", ServerGone, "expected JSON"),
    ],
)
def test_answers_that_lack_something_end_the_run(config, served, spoil, kind, message):
    served.spoil = spoil
    with pytest.raises(kind, match=message):
        go(config())


@pytest.mark.parametrize("action", [plan, run])
def test_a_server_that_takes_no_weights_is_told_of_before_the_training(config, server, action):
    server.play(refuse(404, "Not Found"))
    own = config()
    with pytest.raises(ConfigError, match="serve the student with vLLM with --enable-lora and VLLM_ALLOW"):
        action(own, tiny.context(own))
    assert not Path(own.output).exists()


def test_a_plan_changes_no_weights(config, server, served):
    own = config()
    plan(own, tiny.context(own))
    assert (server.requests, served.loads) == ([{}], 0)
    assert not Path(f"{own.output}.served").exists()


def test_a_folder_of_anybody_else_is_left_alone(config, served, tmp_path):
    (tmp_path / "mine").mkdir()
    own = config(rollout__folder=str(tmp_path / "mine"))
    plan(own, tiny.context(own))
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="must be new or of an earlier run"):
        plan(own, tiny.context(own))
    assert served.loads == 0


def test_beginnings_of_the_teacher_are_gone_on_with(config, served):
    own = config(guidance__responses="live")
    go(own)
    assert tiny.records(own.output)[0]["prefix_length"] > 0
    assert max(drifts(own, "server_drift_max")) < 1e-4
