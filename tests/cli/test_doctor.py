"""`petkit doctor`: what it promises, and what it says when a promise is not kept."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from petkit.cli import doctor, facts

KERNELS = {
    "compiled": True,
    "cpu_kernels": "avx2",
    "available": ["avx2", "scalar", "torch"],
    "why": "the best one",
    "cuda": True,
    "cuda_why": "compiled kernels run on CUDA tensors",
    "cuda_archs": ["sm_80", "sm_90"],
}
TORCH = {"cuda_build": "13.0", "cuda_devices": [], "threads": 2}
ABSENT = {"compiled": False, "cpu_kernels": "torch", "available": ["torch"], "why": "petkit._C does not load"}
NO_CUDA = {"cuda": False, "cuda_why": "petkit._C_cuda does not load"}


@pytest.fixture
def machine(monkeypatch):
    """A healthy machine, with what a test changes about it."""

    def make(kernels=(), torch=(), tools=(), **variables):
        monkeypatch.delenv("PETKIT_CPU_KERNELS", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(facts, "kernel_facts", lambda: {**KERNELS, **dict(kernels)})
        monkeypatch.setattr(facts, "torch_facts", lambda: {**TORCH, **dict(torch)})
        monkeypatch.setattr(facts, "compilers", lambda: {"c++": "/usr/bin/c++", **dict(tools)})
        monkeypatch.setattr(facts, "hardware", lambda: {"cores": 2})

    return make


def statuses(petkit):
    code, out, err = petkit("doctor", "--json")
    payload = json.loads(out)
    assert payload["ok"] == (code == 0) == (err == "")
    return code, {check["name"]: check for check in payload["checks"]}


def test_a_healthy_machine_exits_0_and_names_the_kernels(machine, petkit):
    machine()
    code, checks = statuses(petkit)
    assert code == 0
    assert checks["CPU kernels"]["detail"] == "avx2 (of avx2, scalar, torch): the best one"
    assert checks["packed arithmetic"]["status"] == "ok"
    assert checks["CUDA"]["detail"] == "module built for sm_80, sm_90; no device here"
    assert "avx2" in petkit("doctor").out


def test_without_the_extension(machine, petkit):
    machine(kernels=ABSENT)
    code, checks = statuses(petkit)
    assert code == 4
    assert checks["CPU kernels"]["fix"].startswith("pip install . in the source tree")
    assert petkit("doctor").err.startswith("error: CPU kernels: pip install")


def test_without_the_extension_and_without_a_compiler(machine, petkit):
    machine(kernels=ABSENT, tools={"c++": None})
    code, checks = statuses(petkit)
    assert code == 4
    assert checks["CPU kernels"]["fix"].startswith("install a C++ compiler")


def test_pure_torch_on_demand_is_no_failure(machine, petkit):
    machine(kernels=ABSENT, PETKIT_CPU_KERNELS="torch")
    code, checks = statuses(petkit)
    assert code == 0
    assert checks["CPU kernels"]["status"] == "note"


@pytest.mark.parametrize(
    ("devices", "built", "status"),
    [([], True, "ok"), ([], False, "note"), (["A100"], True, "ok"), (["A100"], False, "fail")],
)
def test_cuda(devices, built, status, machine, petkit):
    machine(kernels={} if built else NO_CUDA, torch={"cuda_devices": devices})
    code, checks = statuses(petkit)
    assert checks["CUDA"]["status"] == status
    assert code == (4 if status == "fail" else 0)


def test_wrong_arithmetic_fails(machine, petkit, monkeypatch):
    machine()
    monkeypatch.setattr("petkit.ops.lowbit_linear", lambda x, packed, *rest: x.new_zeros(len(x), len(packed)))
    code, checks = statuses(petkit)
    assert (code, checks["packed arithmetic"]["status"]) == (4, "fail")


def test_more_threads_than_cores_is_noted(machine, petkit):
    machine(torch={"threads": 64})
    assert statuses(petkit)[1]["threads"]["status"] == "note"


def test_an_old_torch_fails(machine, petkit, monkeypatch):
    machine()
    monkeypatch.setattr(facts, "versions", lambda: {"torch": "2.9.1+cpu"})
    assert statuses(petkit)[0] == 4


def test_the_cache_and_the_extras(machine, petkit, monkeypatch, tmp_path):
    machine(PETKIT_CACHE=str(tmp_path / "not" / "yet"), HF_HUB_OFFLINE="1")
    monkeypatch.setattr(facts, "extras", lambda: {"peft": True, "demo": False})
    monkeypatch.setattr(facts, "free_bytes", lambda folder: facts.GIBIBYTE)
    checks = {finding.name: finding for finding in doctor.examine()}
    assert (checks["cache"].status, checks["network"].status) == ("note", "note")
    assert checks["extras"].fix == 'pip install "petkit[demo]"'


@pytest.mark.parametrize("verb", ["doctor", "env"])
def test_kernels_that_are_not_here_are_named_without_a_traceback(verb):
    # A process of its own, since the choice is read when the operators are first imported.
    environment = {**os.environ, "PETKIT_CPU_KERNELS": "sse"}
    command = [sys.executable, "-m", "petkit", verb, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (4 if verb == "doctor" else 0), done.stderr
    assert "Traceback" not in done.stderr
    payload = json.loads(done.stdout)
    if verb == "env":
        assert "got 'sse'" in payload["kernels"]["error"]
    else:
        failed = [check for check in payload["checks"] if check["status"] == "fail"]
        assert [check["name"] for check in failed] == ["CPU kernels"]
        assert "got 'sse'" in failed[0]["detail"]


def test_every_extra_is_looked_for():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = project.partition("[project.optional-dependencies]")[2].partition("\n\n")[0]
    assert [*facts.EXTRAS, "dev"] == re.findall(r"^(\w+) = \[", section, re.MULTILINE)
