from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from petkit.cli import serve
from tests.serving.text_models import save_llama

Petkit = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PETKIT_API_KEY", raising=False)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The services that would be served; nothing waits for a signal."""
    found: list[Any] = []

    def once(service: Any, held: socket.socket, ready: Callable[[], None]) -> None:
        found.append(service)
        ready()
        service.source.close()

    monkeypatch.setattr("petkit.serving.chat.server.serve", once)
    return found


def test_help(petkit: Petkit) -> None:
    result = petkit("serve", "--help")
    assert result.code == 0
    assert "Usage: petkit serve" in result.out
    assert "--max-queue" in result.out


def test_settings_reach_the_service(petkit: Petkit, llama: Path, served: list[Any]) -> None:
    flags = ("--port", "0", "--max-body", "99", "--max-queue", "7", "--timeout", "3", "--batch-size", "2")
    result = petkit("serve", llama, *flags, "--max-new-tokens", "5", "--name", "mine", "--threads", "1")
    assert (result.code, result.out) == (0, ""), result.err
    assert "mine answers at http://127.0.0.1:" in result.err
    assert "plainly" in result.err
    (service,) = served
    assert (service.limits.body, service.limits.queue, service.limits.timeout) == (99, 7, 3)
    assert (service.source.max_new_tokens, service.source.engine.batch_size) == (5, 2)
    assert (service.name, service.rule, service.key) == ("mine", None, None)


def test_json_names_the_address(petkit: Petkit, llama: Path, served: list[Any]) -> None:
    flags = ("--port", "0", "--route", "zero-shot", "--probe-tokens", "9", "--json")
    result = petkit("serve", llama, *flags)
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["url"].startswith("http://127.0.0.1:")
    assert (content["model"], content["route"], content["key"]) == ("model", "zero-shot", False)
    assert served[0].rule.config.probe_tokens == 9


def test_a_router_is_bound_to_its_model(
    petkit: Petkit, llama: Path, served: list[Any], tmp_path: Path
) -> None:
    data = tmp_path / "q.jsonl"
    data.write_text('{"question": "the cat", "answer": "yes"}\n{"question": "dog", "answer": "no"}\n' * 2)
    flags = ("--data", data, "--max-new-tokens", "8", "--probe-tokens", "4", "-o", tmp_path / "router")
    assert petkit("route", "calibrate", llama, *flags).code == 0
    result = petkit("serve", llama, "--route", tmp_path / "router", "--port", "0")
    assert result.code == 0, result.err
    assert served[0].rule.config.probe_tokens == 4
    manifest = tmp_path / "router" / "petkit.json"
    content = json.loads(manifest.read_text())
    content["base"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    result = petkit("serve", llama, "--route", tmp_path / "router", "--port", "0")
    assert (result.code, result.out) == (2, "")
    assert "calibrate a router for it" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: set PETKIT_API_KEY"),
        (["--host", "no.such.host.invalid"], "lets other machines in"),
        (["--set", "probe_tokens=5"], "they need --route"),
        (["--set", "served.attempts=5"], "they need --route"),
        (["--config", "settings.yaml"], "they need --route"),
        (["--probe-tokens", "5"], "--set, --config and --probe-tokens change a router: they need --route"),
        (["--route", "nowhere"], "nowhere is no router"),
        (["--route", "zero-shot", "--set", "probe_token=5"], "did you mean probe_tokens?"),
        (["--route", "zero-shot", "--set", "chat_template=false"], "chat_template must be true"),
        (["--route", "zero-shot", "--set", "level=dataset"], "level must be question"),
        (["--route", "zero-shot", "--set", "served.vocab=9"], "settings of served have an effect"),
        (["--port", "99999"], "invalid value for '--port'"),
        (["--port", "USED"], "cannot be had: Address already in use; --port 0 takes a free one"),
        (["--max-queue", "0"], "--max-queue"),
        (["--device", "tpu"], "--device must be"),
    ],
)
def test_wrong_usage_gives_2(
    petkit: Petkit, llama: Path, served: list[Any], arguments: list[str], message: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        given = [port if one == "USED" else one for one in arguments]
        result = petkit("serve", llama, *(() if "--port" in given else ("--port", "0")), *given)
    assert (result.code, result.out) == (2, ""), result.err
    assert message in result.err
    assert not served


def test_before_another_server(petkit: Petkit, served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-up")
    flags = ("--route", "zero-shot", "--set", "served.top_log_probs=5", "--port", "0")
    result = petkit("serve", "http://127.0.0.1:9/v1#org/name", *flags)
    assert result.code == 0, result.err
    (service,) = served
    assert (service.name, service.source.settings.top_log_probs) == ("org/name", 5)
    assert "sk-up" not in result.err
    for wrong in (("--device", "cpu"), ("--threads", "1")):
        result = petkit("serve", "http://127.0.0.1:9/v1#m", "--port", "0", *wrong)
        assert result.code == 2
        assert "no effect on a model behind a server" in result.err


def test_a_plain_proxy_has_settings_of_its_own(
    petkit: Petkit, served: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = ("serve", "http://127.0.0.1:9/v1#m", "--port", "0")
    # For other commands.
    monkeypatch.setenv("PETKIT_SET__PROBE_TOKENS", "9")
    file = tmp_path / "settings.yaml"
    file.write_text("served:\n  timeout: 7\n")
    result = petkit(*behind, "--set", "served.attempts=2", "--config", file)
    assert result.code == 0, result.err
    settings = served[0].source.settings
    assert (settings.attempts, settings.timeout, served[0].rule) == (2, 7, None)
    file.write_text("stop: [x]\n")
    for flags, got in (
        (("--set", "served.attempts=2", "--set", "probe_tokens=70"), "probe_tokens (--set)"),
        (("--probe-tokens", "70"), "probe_tokens (--probe-tokens)"),
        (("--config", file), "stop (settings.yaml:1)"),
        (("--set", "served.vocab=9"), "served.vocab (--set)"),
    ):
        result = petkit(*behind, *flags)
        assert (result.code, result.out) == (2, "")
        assert "they need --route, but for served.attempts, served.connect_timeout, served." in result.err
        assert result.err.endswith(f" of a server behind, got {got}\n")
    assert len(served) == 1


def test_a_model_without_a_chat_template(petkit: Petkit, served: list[Any], tmp_path: Path) -> None:
    plain = save_llama(tmp_path / "plain", chat=False)
    result = petkit("serve", plain, "--port", "0")
    assert result.code == 2
    assert "plain has no chat template" in result.err


def test_another_host_with_a_key(
    petkit: Petkit, llama: Path, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETKIT_API_KEY", "sk-secret")
    result = petkit("serve", llama, "--host", "0.0.0.0", "--port", "0", "--json")
    assert result.code == 0, result.err
    assert served[0].key == "sk-secret"
    assert json.loads(result.out)["key"] is True
    assert "sk-secret" not in result.out + result.err


def test_a_missing_package_gives_4(petkit: Petkit, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "petkit.serving.chat.app", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = petkit("serve", llama)
    assert (result.code, result.out) == (4, "")
    assert 'the package fastapi is not installed; pip install "petkit[serve]"' in result.err


def test_names_do_not_show_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert serve._last_part("hf/org/name") == "org/name"
    assert serve._last_part(".") == tmp_path.name


@pytest.mark.slow
def test_signals_end_it(llama: Path) -> None:
    command = [sys.executable, "-m", "petkit", "serve", str(llama), "--port", "0", "--json", "--threads", "1"]
    # A shell's background processes start with SIGINT ignored, and must end by it all the same.
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    numbers = {signal.SIGTERM: 143, signal.SIGINT: 130}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = {
        number: subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for number in numbers
    }
    for number, process in running.items():
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        models = httpx.get(url + "/models", timeout=10, trust_env=False)
        assert models.json()["data"][0]["id"] == "model"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert process.returncode == numbers[number], said
        assert "Traceback" not in said
