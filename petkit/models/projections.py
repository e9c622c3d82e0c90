"""The linear maps inside an adapter: fake-quantised in training, computed from packed bits, or float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from petkit import ops
from petkit.artifacts.packed import PackedMatrix
from petkit.models.config import Codebook

# The spec's smallest usable start: an up-projection of zeros has no standard deviation to quantise by.
UP_STANDARD_DEVIATION = 1e-3
UP_CLIP = 2e-3


class FakeQuantLinear(nn.Module):
    """A bias-free linear map whose latent float32 weight is quantised anew in every forward pass.

    Args:
        in_features, out_features: Sizes of the map.
        bits: 1, 2, 4 or 8 bits per weight.
        kind: Codebook name of petkit.ops.
        gradient: "exact" keeps the derivative of the scale, "identity" passes the gradient on.

    Source: Jie, Wang, Deng 2023 (arXiv 2307.16867), section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        kind: Codebook = "normal_l1",
        gradient: Literal["exact", "identity"] = "exact",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.kind, self.gradient = bits, kind, gradient
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def quantized_weight(self) -> Tensor:
        """The weight (out, in) as the packed file will hold it, differentiable in the latent weight."""
        return ops.lowbit_fake_quantize(self.weight, self.bits, self.kind, self.gradient)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return functional.linear(x, self.quantized_weight())

    def extra_repr(self) -> str:
        """Show the sizes and the quantiser in the module's repr."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, kind={self.kind}"


class PackedLinear(nn.Module):
    """A bias-free linear map computed from packed bits; no dense weight is made.

    Args:
        matrix: The packed matrix (out, in).
    """

    packed: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.shape
        self.bits, self.kind = matrix.bits, matrix.kind
        self.register_buffer("packed", matrix.rows())
        self.register_buffer("shift", torch.tensor(matrix.shift, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(matrix.scale, dtype=torch.float32))

    def matrix(self) -> PackedMatrix:
        """The packed matrix that this module computes with."""
        return PackedMatrix.from_rows(
            self.packed.cpu(), float(self.shift), float(self.scale), self.bits, self.in_features, self.kind
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return ops.lowbit_linear(x, self.packed, self.shift, self.scale, self.bits, self.kind)

    def extra_repr(self) -> str:
        """Show the sizes and the quantiser in the module's repr."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, kind={self.kind}"


Projection = FakeQuantLinear | PackedLinear | nn.Linear


def make_projection(
    in_features: int, out_features: int, bits: int, kind: Codebook, gradient: Literal["exact", "identity"]
) -> Projection:
    """A trainable bias-free map: fake-quantised below 32 bits, `nn.Linear` at 32.

    Args:
        in_features, out_features: Sizes of the map.
        bits: 1, 2, 4, 8 or 32.
        kind, gradient: As in FakeQuantLinear; without effect at 32 bits.

    Returns:
        The module, with torch's default initial weights.
    """
    if bits == 32:
        return nn.Linear(in_features, out_features, bias=False)
    return FakeQuantLinear(in_features, out_features, bits, kind, gradient)


@torch.no_grad()
def initialize_linear(parameter: Tensor, in_features: int, generator: torch.Generator | None) -> None:
    """Fill a weight or bias with U(-1/sqrt(in), 1/sqrt(in)), the default of torch's Linear.

    Args:
        parameter: Weight (out, in) or bias (out,), changed in place.
        in_features: Inputs of the map.
        generator: Source of the numbers; None uses torch's global one.
    """
    bound = in_features**-0.5
    parameter.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def initialize_up(weight: Tensor, bits: int, generator: torch.Generator | None) -> None:
    """Start an up-projection at zero for 32 bits, else at a normal of deviation 1e-3 cut at 2e-3.

    Args:
        weight: (out, hidden), changed in place.
        bits: Bits per weight.
        generator: Source of the numbers; None uses torch's global one.

    Source: spec of the binary adapter, section 3 (zero has no standard deviation to quantise by).
    """
    if bits == 32:
        weight.zero_()
    else:
        nn.init.trunc_normal_(weight, std=UP_STANDARD_DEVIATION, a=-UP_CLIP, b=UP_CLIP, generator=generator)


def pack_projection(projection: Projection) -> PackedMatrix | Tensor:
    """What the artifact stores for a map: packed codes, or float32 numbers at 32 bits.

    Args:
        projection: Any of the three flavours.

    Returns:
        PackedMatrix (out, in), or a float32 tensor (out, in) on the CPU.
    """
    if isinstance(projection, PackedLinear):
        return projection.matrix()
    weight = projection.weight.detach().float()
    if isinstance(projection, nn.Linear):
        return weight.cpu().clone()
    packed, shift, scale = ops.lowbit_quantize(weight, projection.bits, projection.kind)
    return PackedMatrix.from_rows(
        packed.cpu(), float(shift), float(scale), projection.bits, projection.in_features, projection.kind
    )


def dense_projection(weight: Tensor) -> nn.Linear:
    """A frozen bias-free `nn.Linear` that holds the given weight (out, in)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return linear


def effective_weight(projection: Projection) -> Tensor:
    """The dense weight (out, in) float32 that a map multiplies with, without gradient."""
    if isinstance(projection, PackedLinear):
        return torch.as_tensor(projection.matrix().dequantize()).to(projection.packed.device)
    with torch.no_grad():
        if isinstance(projection, FakeQuantLinear):
            return projection.quantized_weight()
        return projection.weight.float()
