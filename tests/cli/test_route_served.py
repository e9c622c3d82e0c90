"""petkit route with a model behind a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rollout.fault_server import FaultServer, ended, serving, stream, words

Petkit = Callable[..., Any]
FAST = ("--probe-tokens", "4", "--max-new-tokens", "10")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    monkeypatch.setenv("PETKIT_API_KEY", "sk-secret")
    with serving() as found:
        yield found.play(stream(*ended(7)))


@pytest.fixture
def model(server: FaultServer) -> str:
    return f"{server.url}#m"


def test_every_command(
    petkit: Petkit, server: FaultServer, model: str, questions: Path, tmp_path: Path
) -> None:
    result = petkit("route", "probe", model, questions, *FAST[:2], "-o", tmp_path / "p", "--json")
    assert result.code == 0, result.err
    told = "the true ones are larger by {largest:.3g} nats at most, {mean:.3g} on average over all tokens"
    assert told.format(**json.loads(result.out)["entropy_bias"]) in result.err
    found = json.loads(result.out)
    assert found["entropy_bias"]["largest"] >= found["entropy_bias"]["mean"] > 0
    assert all(item["cumulative_bias"] == pytest.approx(4 * item["entropy_bias"]) for item in found["items"])
    page = (tmp_path / "p" / "report.html").read_text()
    assert told.format(**found["entropy_bias"]) in page
    assert "spearman and von_neumann, have no bound" in page
    lines = (tmp_path / "p" / "trajectories.jsonl").read_text().splitlines()
    assert all(json.loads(line)["entropy_bias"]["largest"] > 0 for line in lines)
    result = petkit("route", "explain", "--model", model, "--question", "why", *FAST[:2])
    assert (result.code, "over 4 tokens" in result.out) == (0, True), result.err
    assert "nats a token too low on average; spearman and von Neumann have no bound" in result.out
    trace = tmp_path / "p" / "trajectories.jsonl"
    limit = found["items"][0]["cumulative"] + 0.5 * found["items"][0]["cumulative_bias"]
    flags = ("--set", f"thresholds.cumulative={limit}", "-o", tmp_path / "near")
    near = petkit("route", "explain", trace, *flags)
    assert "warning: the entropies are estimates: 3 of 3 sums (1: " in near.err
    page = (tmp_path / "near" / "report.html").read_text()
    assert "Warning: the entropies are estimates: 3 of 3 sums (1: " in page
    assert ">entropy_bias</th>" in page
    assert f"may lie above the threshold of {limit:g} nats" in near.err
    assert "warning" not in petkit("route", "explain", trace, "--set", "thresholds.cumulative=999").err
    result = petkit("route", "calibrate", model, "--data", questions, *FAST, "-o", tmp_path / "r")
    assert result.code == 0, result.err
    manifest = json.loads((tmp_path / "r" / "petkit.json").read_text())
    assert manifest["base"]["id"] == "m"
    result = petkit("route", "eval", model, "--data", questions, "--router", tmp_path / "r", "--json")
    assert result.code == 0, result.err
    result = petkit("route", "run", model, "--data", questions, "--router", tmp_path / "r", "--json")
    assert [item["tokens"] for item in json.loads(result.out)["items"]] == [7, 7, 7]
    assert set(server.keys) == {"Bearer sk-secret"}
    assert "sk-secret" not in result.out + result.err
    result = petkit("verify", tmp_path / "r", "--base", "http://elsewhere/v1#m")
    assert result.code == 0, result.err


def test_a_router_is_bound_to_the_name(
    petkit: Petkit, server: FaultServer, model: str, questions: Path, tmp_path: Path
) -> None:
    assert petkit("route", "calibrate", model, "--data", questions, *FAST, "-o", tmp_path / "r").code == 0
    asked = len(server.requests)
    result = petkit("route", "run", f"{server.url}#other", "--data", questions, "--router", tmp_path / "r")
    assert (result.code, result.out) == (2, "")
    assert "was calibrated for m with sha256" in result.err
    assert len(server.requests) == asked


def test_a_stream_that_breaks_off_gives_1(
    petkit: Petkit, server: FaultServer, model: str, questions: Path
) -> None:
    server.play(stream(*words(2)))
    result = petkit("route", "run", model, "--data", questions, *FAST)
    assert (result.code, result.out) == (1, "")
    assert "error: question " in result.err
    assert "the stream ended in the middle of an answer" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_missing_package_gives_4(petkit: Petkit, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("petkit.rollout.remote", "petkit.methods.edrm.served"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    result = petkit("route", "run", model, "--question", "why")
    assert (result.code, result.out) == (4, "")
    assert 'the package httpx is not installed; pip install "petkit[serve]"' in result.err


@pytest.mark.parametrize(
    ("address", "flags", "message"),
    [
        ("http://h/v1", (), "a served model must be http://HOST:PORT/v1#NAME"),
        ("http://me:pw@h/v1#m", (), "must hold no password"),
        ("MODEL", ("--device", "cpu"), "--device and --threads have no effect"),
        ("MODEL", ("--threads", "2"), "--device and --threads have no effect"),
        ("MODEL", ("--set", "chat_template=false"), "chat_template must be true"),
        ("MODEL", ("--set", "served.top_logprobs=5"), "did you mean served.top_log_probs?"),
    ],
)
def test_wrong_usage_gives_2(
    petkit: Petkit, model: str, address: str, flags: tuple[str, ...], message: str
) -> None:
    result = petkit("route", "run", address.replace("MODEL", model), "--question", "why", *flags)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "pw" not in result.err
