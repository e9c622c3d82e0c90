"""Losses that several methods share: pure functions of tensors, masked means over tokens in nats.

Names load on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petkit.losses.divergences import forward_kl, jsd, reverse_kl
    from petkit.losses.head import head_divergence, head_log_probs
    from petkit.losses.policy import policy_gradient
    from petkit.losses.top_k import topk_forward_kl

_HOMES = {
    "forward_kl": "divergences",
    "head_divergence": "head",
    "head_log_probs": "head",
    "jsd": "divergences",
    "policy_gradient": "policy",
    "reverse_kl": "divergences",
    "topk_forward_kl": "top_k",
}

__all__ = [
    "forward_kl",
    "head_divergence",
    "head_log_probs",
    "jsd",
    "policy_gradient",
    "reverse_kl",
    "topk_forward_kl",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'petkit.losses' has no attribute {name!r}")
    return getattr(import_module(f"petkit.losses.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
