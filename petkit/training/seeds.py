"""One seed, many named streams: every random number is a function of the seed, a name and a position.

Nothing random has to be saved in a checkpoint: the stream of step k is derived again from its number, so
that a run resumed at step k draws what the uninterrupted run drew, with any number of loader processes.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """Derive the seed of a named stream.

    Args:
        seed: root seed, any integer.
        names: path of the stream, such as `"data", 3`; streams of different paths are independent.

    Returns:
        An integer in [0, 2**63).

    Source:
        The first 63 bits of SHA-256 over the path: the same on every platform and version, unlike `hash`.
    """
    path = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """Make the CPU generator of a named stream.

    Args:
        seed: root seed.
        names: path of the stream.

    Returns:
        A generator that nothing else draws from.

    Source:
        `derive`.
    """
    return torch.Generator().manual_seed(derive(seed, *names))


def seed_global(seed: int, *names: str | int) -> None:
    """Point the global generators (torch on every device, NumPy, random) at a named stream.

    Layers such as dropout can only draw from the global generator, hence the trainer calls this before every
    step.

    Args:
        seed: root seed.
        names: path of the stream.

    Source:
        `derive`.
    """
    derived = derive(seed, *names)
    torch.manual_seed(derived)
    np.random.seed(derived & 0xFFFFFFFF)
    random.seed(derived)
