"""What happens while a model writes: today, how sure it is of every token.

Names load on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petkit.rollout.entropy import EntropyTracker, Trajectory

__all__ = ["EntropyTracker", "Trajectory"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'petkit.rollout' has no attribute {name!r}")
    return getattr(import_module("petkit.rollout.entropy"), name)


def __dir__() -> list[str]:
    return __all__
