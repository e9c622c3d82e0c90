"""Logits for the operators that work row by row, and how exact their results have to be."""

from __future__ import annotations

import numpy as np
import torch

from petkit.ops import divergence

BETAS = (0, 0.1, 0.5, 0.9, 1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What users are promised, in nats: within 1e-5 of float64 on the same inputs.
NATS = 1e-5
# Rows and vocabulary: none, one token, around the vector widths of 8 and 16 and twice them, around the blocks
# of 2,048 and 4,096.
SHAPES = [
    (0, 5),
    (3, 1),
    (2, 2),
    (5, 7),
    (3, 8),
    (2, 9),
    (5, 15),
    (2, 16),
    (3, 17),
    (2, 31),
    (4, 63),
    (3, 65),
]
SHAPES += [(2, 2047), (2, 2048), (3, 2049), (1, 4095), (1, 4096), (2, 4097)]
# A real vocabulary, and more rows than 16 bits count.
LARGE = [(1, 50257), (65537, 3)]
# One rounding of a stored gradient, on top of float32's.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def normal(
    *shape: int, scale: float = 3.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def exact(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def computed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as the result of a computation, which may be overwritten."""
    return tensor.clone().requires_grad_() * 1


def every_other(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, not contiguous in memory."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]


def pair(*shape, scale=3.0, dtypes=(torch.float32, torch.float32)):
    return tuple(normal(*shape, scale=scale, seed=seed, dtype=dtype) for seed, dtype in enumerate(dtypes))


def divergence_gradient(student, teacher, upstream, *settings, **more):
    """The loss's gradient, by way of logits that come from a computation; and where it was written."""
    logits = computed(student)
    place = logits.data_ptr()
    loss = divergence(logits, teacher, *settings, **more).loss
    (gradient,) = torch.autograd.grad(loss, logits, upstream)
    return gradient, gradient.data_ptr() == place
