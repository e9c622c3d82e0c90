"""Builds the emulator's modules once per state of their sources and gives them to the tests."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# Device code reads arrays as vectors, and the quantiser's roundings are not to be fused.
FLAGS += ["-fno-strict-aliasing", "-ffp-contract=off"]
INCLUDES = [HERE / "include", HERE, ROOT / "csrc_cuda", ROOT / "cpp" / "include", ROOT / "cpp"]
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]


def sources() -> Iterator[Path]:
    yield ROOT / "cpp" / "library.cpp"
    for folder in (HERE, ROOT / "csrc_cuda", ROOT / "cpp" / "include"):
        yield from sorted(path for path in folder.rglob("*") if path.suffix in (".cpp", ".cu", ".cuh", ".h"))


def fingerprint(command: list[str]) -> str:
    digest = hashlib.sha256(" ".join([*command, torch.__version__]).encode())
    for path in sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(command: list[str], target: Path) -> None:
    # A compiler that is killed leaves no half of a library under its name.
    temporary = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True, check=False)
    messages = [line for line in done.stderr.splitlines() if " error: " in line or " warning: " in line]
    if done.returncode != 0 or messages:
        pytest.fail("the CUDA emulator does not compile cleanly:\n" + "\n".join(messages or [done.stderr]))
    temporary.replace(target)


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Compiles a source of this folder unless that was done before; gives the library's path."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("the CUDA emulator needs g++ (or CXX)")
    folder = request.config.cache.mkdir("cuda_emulator")

    def build(source: str, before: list[str], after: list[str]) -> Path:
        includes = [f"-I{path}" for path in INCLUDES]
        command = [compiler, *FLAGS, *includes, *before, str(HERE / source), *after]
        target = folder / f"{Path(source).stem}_{fingerprint(command)}.so"
        # Workers that need the same library wait for the first.
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                compile_library(command, target)
        return target

    return build


def load(built: Callable[..., Path], source: str, name: str) -> ModuleType:
    pybind11 = pytest.importorskip("pybind11", reason="the CUDA emulator needs pybind11 (petkit[dev])")
    includes = [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]
    spec = importlib.util.spec_from_file_location(name, built(source, includes, []))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cuda(built: Callable[..., Path]) -> ModuleType:
    """The kernels' host launchers on NumPy arrays."""
    return load(built, "module.cpp", "cuda_emulator")


@pytest.fixture(scope="session")
def cuda_crf(built: Callable[..., Path]) -> ModuleType:
    """Those of the CRF kernels, which are a module of their own since they take long to compile."""
    return load(built, "crf_module.cpp", "cuda_emulator_crf")


@pytest.fixture(scope="session")
def cuda_beam(built: Callable[..., Path]) -> ModuleType:
    """Those of the beam CRF kernels."""
    return load(built, "beam_module.cpp", "cuda_emulator_beam")


@pytest.fixture(scope="session")
def cuda_rows(built: Callable[..., Path]) -> ModuleType:
    """Those of the kernels over rows of logits that the first module does not hold."""
    return load(built, "rows_module.cpp", "cuda_emulator_rows")


@pytest.fixture(scope="session")
def call(built: Callable[..., Path]) -> Callable[..., object]:
    """Calls an operator's CUDA implementation, compiled for the emulator, on CPU tensors."""
    from torch.utils.cpp_extension import include_paths

    before = [*STABLE_ABI, *(f"-isystem{path}" for path in include_paths())]
    libraries = Path(torch.__file__).parent / "lib"
    torch.ops.load_library(built("operators.cpp", before, [f"-L{libraries}", "-ltorch_cpu", "-lc10"]))
    on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def run(name: str, *arguments: object) -> object:
        return getattr(torch.ops.petkit_emulated, name).default.redispatch(on_cuda, *arguments)

    return run
