"""The device, thread and determinism flags of a run."""

from __future__ import annotations

import logging
import os

import torch

from petkit.errors import ConfigError, MissingError

log = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """Turn `--device` into a device that is here.

    Args:
        name: auto, cpu, cuda or cuda:INDEX. auto takes a GPU when there is one, under a launcher the local
            rank's.

    Returns:
        The device.

    Raises:
        ConfigError: the name is none of these.
        MissingError: the device is not here; nothing falls back in silence.
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:INDEX, got {name!r}")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local = int(index) if index else int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local >= count:
        raise MissingError(
            f"--device {name} must name a CUDA device that is here, got {count} device(s): use --device cpu "
            "or auto"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def configure(threads: int | None, deterministic: bool) -> None:
    """Apply `--threads` and `--deterministic` to this process.

    Args:
        threads: CPU threads of torch, at least 1; None leaves torch's choice.
        deterministic: refuse kernels whose result depends on timing.

    Raises:
        ConfigError: threads below 1.

    Source:
        torch.use_deterministic_algorithms.
    """
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {threads}")
        available = os.cpu_count() or threads
        if threads > available:
            log.warning("--threads %d is more than the %d cores of this machine", threads, available)
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
