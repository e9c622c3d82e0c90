"""Builds petkit._C from cpp/ and, with a CUDA toolkit, petkit._C_cuda from csrc_cuda/.

What cannot be built is left out with a message: petkit then runs on its pure-torch defaults. Environment:
  PETKIT_CPP=0|1    never build the CPU kernels, or fail when they cannot be built
  PETKIT_CUDA=0|1   likewise for the CUDA kernels
  CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS   as in torch.utils.cpp_extension
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).parent
TOOLKIT = Path("/usr/local/cuda")

# torch's include paths and compilers are settled when cpp_extension is imported. The nvcc on PATH may be a
# wrapper elsewhere, from which a wrong home would be inferred.
if "CUDA_HOME" not in os.environ and (TOOLKIT / "bin" / "nvcc").exists():
    os.environ["CUDA_HOME"] = str(TOOLKIT)
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0")

# The libtorch stable ABI of 2.10 and Python's limited API of 3.10: one build serves all later ones.
DEFINITIONS = [
    ("Py_LIMITED_API", "0x030A0000"),
    ("TORCH_TARGET_VERSION", "0x020a000000000000"),
    ("TORCH_STABLE_ONLY", None),
]
# Without contraction: a fused multiply-add here and there would give other codes and sums per compiler.
FLAGS = ["-O3", "-g0", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden"]
NVCC_FLAGS = ["-O3", "-std=c++17"]


def wanted(part: str) -> bool | None:
    """Is a part of the build forbidden (False), demanded (True) or taken when it can be had (None)?"""
    return {"0": False, "1": True}.get(os.environ.get(f"PETKIT_{part}", ""))


def give_up(part: str, reason: object) -> None:
    """Say loudly that a part is left out; fail instead when it was demanded."""
    if wanted(part):
        raise SystemExit(f"PETKIT_{part}=1 demands these kernels, but they cannot be built: {reason}")
    line = "!" * 78
    print(
        f"\n{line}\npetkit: the compiled {part} kernels are left out; pure-torch defaults run instead.\n"
        f"reason: {reason}\n"
        f"`petkit doctor` shows what runs. PETKIT_{part}=1 makes this an error.\n{line}\n",
        file=sys.stderr,
    )


def sources(*patterns: str) -> list[str]:
    """Sources relative to the root, in a fixed order."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def headers() -> list[str]:
    """Headers whose change rebuilds the extensions."""
    return sources("cpp/**/*.h", "csrc_cuda/**/*.h", "csrc_cuda/**/*.cuh")


def extensions(cpp: Any) -> list[Any]:
    """The extension modules to try; `cpp` is torch.utils.cpp_extension."""
    shared: dict[str, Any] = {"define_macros": DEFINITIONS, "py_limited_api": True, "depends": headers()}
    include = [str(ROOT / "cpp" / "include"), str(ROOT / "cpp" / "core")]
    found = []
    if wanted("CPP") is not False:
        core = sources("cpp/*.cpp", "cpp/core/*.cpp", "cpp/ops/*.cpp")
        found.append(
            cpp.CppExtension(
                "petkit._C", core, include_dirs=include, extra_compile_args={"cxx": FLAGS}, **shared
            )
        )
    if wanted("CUDA") is not False:
        reason = cuda_obstacle(cpp)
        if reason is None:
            found.append(
                cpp.CUDAExtension(
                    "petkit._C_cuda",
                    sources("csrc_cuda/*.cu"),
                    include_dirs=[*include, str(ROOT / "csrc_cuda")],
                    extra_compile_args={"cxx": FLAGS, "nvcc": NVCC_FLAGS},
                    **shared,
                )
            )
        elif wanted("CUDA"):
            give_up("CUDA", reason)
    return found


def cuda_obstacle(cpp: Any) -> str | None:
    """Why the CUDA kernels cannot be tried, if so."""
    import torch

    if cpp.CUDA_HOME is None:
        return "no CUDA toolkit was found; set CUDA_HOME"
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    return None


def compiler_obstacle() -> str | None:
    """Why nothing can be compiled at all, if so."""
    name = os.environ.get("CXX", "c++").split()[0]
    return None if shutil.which(name) else f"there is no C++ compiler ({name}); set CXX"


def tolerant(builder: type[Any]) -> type[Any]:
    """A build_ext that leaves out what does not build, unless it was demanded."""

    class Tolerant(builder):  # type: ignore[misc]
        def build_extensions(self) -> None:
            """Build one extension after the other, each on its own."""
            every = list(self.extensions)
            for extension in every:
                self.extensions[:] = [extension]
                try:
                    super().build_extensions()
                except Exception as error:
                    every = [other for other in every if other is not extension]
                    give_up(
                        "CUDA" if extension.name.endswith("_cuda") else "CPP", compiler_obstacle() or error
                    )
            self.extensions[:] = every

    return Tolerant


def arguments() -> dict[str, Any]:
    """What setup() is told about native code; nothing when torch cannot build any."""
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        for part in ("CPP", "CUDA"):
            if wanted(part) is not False:
                give_up(part, error)
        return {}
    return {
        "ext_modules": extensions(cpp_extension),
        "cmdclass": {"build_ext": tolerant(cpp_extension.BuildExtension)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**arguments())
