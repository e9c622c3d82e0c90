"""`petkit doctor`: is everything here that petkit promises, and if not, what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from petkit.cli import facts, output
from petkit.cli.common import JsonFlag
from petkit.errors import MissingError

OLDEST_TORCH = (2, 10)
REBUILD = "pip install . in the source tree"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fail` is a promise not kept; `note` is worth knowing."""

    name: str
    status: Literal["ok", "note", "fail"]
    detail: str
    fix: str = ""


def command(as_json: JsonFlag = False) -> None:
    """Check this installation; exit 4 when a promised backend is missing."""
    findings = examine()
    rows = [(finding.status, finding.name, finding.detail, finding.fix) for finding in findings]
    failed = [finding for finding in findings if finding.status == "fail"]
    payload = {"ok": not failed, "checks": [asdict(finding) for finding in findings]}
    output.print_result(output.table(("", "check", "found", "what to do"), rows), payload, as_json)
    if failed:
        raise MissingError(
            "; ".join(f"{finding.name}: {finding.fix or finding.detail}" for finding in failed)
        )


def examine() -> list[Finding]:
    """Run every check; without torch only those that need none."""
    torch_finding = _torch()
    checks: list[Callable[[], Finding]] = [_disk, _offline, _extras]
    if torch_finding.status != "fail":
        # When the kernels asked for are not here, no operator can run.
        operators = [_kernels] if "error" in facts.kernel_facts() else [_kernels, _agreement, _cuda]
        checks = [*operators, _threads, *checks]
    return [torch_finding, *(check() for check in checks)]


def _torch() -> Finding:
    version = facts.versions()["torch"]
    if version is None or not facts.torch_facts():
        return Finding(
            "torch", "fail", "not installed" if version is None else "does not import", "pip install torch"
        )
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST_TORCH:
        return Finding("torch", "fail", version, "pip install --upgrade 'torch>=2.10'")
    return Finding("torch", "ok", version)


def _kernels() -> Finding:
    """Which CPU kernels run. Without the extension petkit works, slowly; the compiled ones are promised."""
    kernels = facts.kernel_facts()
    if "error" in kernels:
        return Finding(
            "CPU kernels", "fail", kernels["error"], "set PETKIT_CPU_KERNELS to one of these, or unset it"
        )
    choice = ", ".join(kernels["available"])
    running = f"{kernels['cpu_kernels']} (of {choice}): {kernels['why']}"
    if kernels["compiled"]:
        return Finding("CPU kernels", "ok", running)
    if os.environ.get("PETKIT_CPU_KERNELS") == "torch":
        return Finding("CPU kernels", "note", running, "unset PETKIT_CPU_KERNELS for the compiled kernels")
    missing = "" if facts.compilers()["c++"] else "install a C++ compiler (apt-get install g++), then "
    return Finding("CPU kernels", "fail", running, missing + REBUILD)


def _agreement() -> Finding:
    """The kernels that run here against dense arithmetic in float64."""
    import torch

    from petkit import ops

    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 65, generator=generator) for rows in (33, 7))
    worst = 0.0
    for bits in (1, 2, 4, 8):
        packed, shift, scale = ops.lowbit_quantize(weight, bits)
        dense = ops.lowbit_dequantize(packed, shift, scale, bits, 65).double()
        expected = x.double() @ dense.T
        found = ops.lowbit_linear(x, packed, shift, scale, bits)
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    # 65 products summed in float32 stay within 65 roundings of 6e-8.
    status: Literal["ok", "fail"] = "ok" if worst < 65 * 6e-8 else "fail"
    fix = "" if status == "ok" else f"rebuild: {REBUILD}; then report it with `petkit env --json`"
    return Finding(
        "packed arithmetic", status, f"differs from dense by {worst:.1e} at most (1 to 8 bits)", fix
    )


def _cuda() -> Finding:
    torch, kernels = facts.torch_facts(), facts.kernel_facts()
    devices = ", ".join(torch["cuda_devices"])
    if kernels["cuda"]:
        archs = ", ".join(kernels["cuda_archs"])
        return Finding("CUDA", "ok", f"module built for {archs}; {devices or 'no device here'}")
    if not devices:
        return Finding("CUDA", "note", f"no device; {kernels['cuda_why']}")
    return Finding("CUDA", "fail", f"{devices}, but {kernels['cuda_why']}", f"with CUDA_HOME set, {REBUILD}")


def _threads() -> Finding:
    threads, cores = facts.torch_facts()["threads"], facts.hardware()["cores"]
    detail = f"{threads} of {cores} cores"
    if threads > cores:
        return Finding(
            "threads", "note", detail, f"set OMP_NUM_THREADS={cores}: more threads than cores are slower"
        )
    return Finding("threads", "ok", detail)


def _disk() -> Finding:
    folder = facts.cache_folder()
    free = facts.free_bytes(folder) / facts.GIBIBYTE
    detail = f"{folder}, {free:.1f} GiB free"
    if free < 2:
        return Finding("cache", "note", detail, "free some space, or set PETKIT_CACHE to another disk")
    return Finding("cache", "ok", detail)


def _offline() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return Finding(
            "network", "note", "offline: only cached models load", "unset HF_HUB_OFFLINE to download"
        )
    return Finding("network", "ok", "model hubs may be asked; nothing else ever is")


def _extras() -> Finding:
    found = facts.extras()
    absent = [name for name, present in found.items() if not present]
    present = ", ".join(name for name in found if name not in absent) or "none"
    fix = f'pip install "petkit[{",".join(absent)}]"' if absent else ""
    return Finding("extras", "note" if absent else "ok", present, fix)
