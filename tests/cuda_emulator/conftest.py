"""Builds the emulator once per state of its sources and gives it to the tests."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
INCLUDES = (HERE / "include", HERE, ROOT / "csrc_cuda", ROOT / "cpp" / "include")
FLAGS = (
    "-std=c++17",
    "-O1",
    "-shared",
    "-fPIC",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
)


def sources() -> Iterator[Path]:
    for folder in (HERE, ROOT / "csrc_cuda", ROOT / "cpp" / "include"):
        yield from sorted(path for path in folder.rglob("*") if path.suffix in (".cpp", ".cuh", ".h"))


def fingerprint(compiler: str) -> str:
    digest = hashlib.sha256(" ".join((compiler, *FLAGS, sysconfig.get_config_var("EXT_SUFFIX"))).encode())
    for path in sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_module(compiler: str, target: Path) -> None:
    pybind11 = pytest.importorskip("pybind11", reason="the CUDA emulator needs pybind11 (petkit[dev])")
    includes = [*INCLUDES, pybind11.get_include(), sysconfig.get_paths()["include"]]
    # Another process may build the same module: each writes its own file and renames it.
    temporary = target.with_suffix(f".{os.getpid()}")
    command = [compiler, *FLAGS, "-Wno-unknown-pragmas", *(f"-I{path}" for path in includes)]
    done = subprocess.run(
        [*command, str(HERE / "module.cpp"), "-o", str(temporary)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if " error: " in line]
        pytest.fail("the CUDA emulator does not compile:\n" + "\n".join(errors or [done.stderr]))
    assert "warning:" not in done.stderr, done.stderr
    temporary.replace(target)


@pytest.fixture(scope="session")
def cuda(request: pytest.FixtureRequest) -> ModuleType:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("the CUDA emulator needs g++ (or CXX)")
    folder = request.config.cache.mkdir("cuda_emulator")
    target = folder / f"cuda_emulator_{fingerprint(compiler)}.so"
    if not target.exists():
        compile_module(compiler, target)
    spec = importlib.util.spec_from_file_location("cuda_emulator", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
