"""Run by a child process only: torch.load(weights_only=True) under limits, saved again as safetensors.

Usage: python -I unpickle_child.py INPUT OUTPUT
"""

from __future__ import annotations

import os
import resource
import sys

CPU_SECONDS = 60
SPARE_BYTES = 2**30


def limit(size: int) -> None:
    """Bound processor time, memory and file size; torch itself is already loaded and does not count."""
    limits = {
        resource.RLIMIT_CPU: int(sum(os.times()[:2])) + 1 + CPU_SECONDS,
        resource.RLIMIT_FSIZE: 4 * size + 2**20,
        resource.RLIMIT_CORE: 0,
    }
    # Only Linux tells how much is mapped already, and only there is the limit kept.
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = mapped + 6 * size + SPARE_BYTES
    for what, value in limits.items():
        resource.setrlimit(what, (value, value))


def main() -> None:
    """Load the pickle, check that it is a flat state dict, save it."""
    import torch
    from safetensors.torch import save_file

    source, target = sys.argv[1:]
    limit(os.path.getsize(source))
    state = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        sys.exit("it is not a dict of tensors")
    # Cloned, because safetensors refuses tensors that share memory.
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, target)


if __name__ == "__main__":
    main()
