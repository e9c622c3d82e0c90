"""Gaussian noise on weight matrices: how flat the minimum is that a training run found."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from petkit.errors import InputError


def gaussian_noise(weight: Tensor, relative: float, generator: torch.Generator) -> Tensor:
    """Return a weight with noise N(0, (relative * sigma)^2), sigma the standard deviation of that weight.

    Args:
        weight: any shape of at least two elements, floating point.
        relative: r, the noise in standard deviations of the weight, at least 0.
        generator: source of the noise, on the weight's device.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        InputError: `relative` is negative or not finite.

    Source:
        Jie, Wang and Deng (2023), robustness to weight noise; sigma is the unbiased estimate, as in the
        quantiser.
    """
    if not 0 <= relative < float("inf"):
        raise InputError(f"relative noise must be at least 0 and finite, got {relative}")
    noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=torch.float32)
    return (weight.float() + relative * weight.float().std() * noise).to(weight.dtype)


def add_noise(
    weights: Mapping[str, Tensor], relative: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Noise for every matrix of an adapter, each by its own standard deviation.

    Args:
        weights: name -> matrix (out, in); what is no matrix is passed on as it is.
        relative: r, at least 0.
        generator: one source, drawn from in sorted order of names, so that the order of the mapping does
            not matter.

    Returns:
        name -> tensor, in the order of `weights`.

    Raises:
        InputError: `relative` is negative or not finite.

    Source:
        Jie, Wang and Deng (2023), robustness to weight noise.
    """
    noisy = {
        name: gaussian_noise(weights[name], relative, generator)
        for name in sorted(weights)
        if weights[name].ndim == 2 and weights[name].is_floating_point()
    }
    return {name: noisy.get(name, weight) for name, weight in weights.items()}
