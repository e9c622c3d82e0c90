"""Every CUDA source compiles and links for sm_80 and sm_90; loading the result registers all operators."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_layout import WITHOUT_CUDA

ROOT = Path(__file__).parents[2]
ARCHITECTURES = {"sm_80", "sm_90"}

# Loads a module file and prints its architectures and the operators that have a CUDA kernel; needs no device.
PROBE = """
import importlib.util, re, sys, torch
schemas = open("cpp/library.cpp").read()
spec = importlib.util.spec_from_file_location("_C_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
known = set(torch._C._dispatch_get_all_op_names())
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
for name in re.findall(r'm\\.def\\(\\s*"(\\w+)\\(', schemas):
    # An operator without a CUDA kernel is not known to this module at all.
    op = f"petkit::{name}"
    print("op", name, op in known and has_kernel(op, "CUDA"))
print("archs", *module.build_facts()["archs"])
"""


def newest_source() -> float:
    folders = (ROOT / "csrc_cuda", ROOT / "cpp" / "include")
    return max(path.stat().st_mtime for folder in folders for path in folder.rglob("*") if path.is_file())


def built_module(folder: Path) -> Path:
    """What `make cuda` left when its sources are unchanged since; otherwise this builds it as that does."""
    for ready in (ROOT / "petkit").glob("_C_cuda*.so"):
        if ready.stat().st_mtime >= newest_source():
            return ready
    environment = {**os.environ, "PETKIT_CPP": "0", "PETKIT_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0;9.0"}
    if Path("/usr/local/cuda/bin/nvcc").exists():
        environment.setdefault("CUDA_HOME", "/usr/local/cuda")
    command = [
        sys.executable,
        "setup.py",
        "--quiet",
        "build_ext",
        "--build-lib",
        folder,
        "--build-temp",
        folder,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (module,) = folder.rglob("_C_cuda*.so")
    return module


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_kernel_compiles_and_every_operator_is_registered(tmp_path):
    if shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("there is no CUDA toolkit (nvcc) on this machine")
    if torch.version.cuda is None:
        pytest.skip("this torch has no CUDA, so its CUDA modules cannot be loaded")
    module = built_module(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(module)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    operators = {line[1]: line[2] for line in lines if line[0] == "op"}
    assert operators
    assert {name for name, has in operators.items() if has != "True"} == WITHOUT_CUDA
    assert set(next(line[1:] for line in lines if line[0] == "archs")) >= ARCHITECTURES
