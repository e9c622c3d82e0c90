"""One weight matrix in 1, 2, 4 or 8 bits: codes in a flat byte stream, a shift and a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petkit.errors import ArtifactError

if TYPE_CHECKING:
    import torch

BITS = (1, 2, 4, 8)
CODEBOOKS = ("normal_l1", "petl_vit")


def stream_length(shape: tuple[int, int], bits: int) -> int:
    """Return the bytes of a flat stream of shape[0] * shape[1] codes of `bits` bits, the last byte padded."""
    return (shape[0] * shape[1] * bits + 7) // 8


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantised matrix W (out, in) with W[i, j] = shift + scale * level[code[i, j]].

    Args:
        shape: (out, in), both at least 1.
        bits: 1, 2, 4 or 8 bits a code.
        kind: codebook that holds the levels, `normal_l1` or `petl_vit`.
        shift: finite float32 value, the mean of the weights.
        scale: finite float32 value, not negative, the standard deviation of the weights.
        stream: uint8 (ceil(out * in * bits / 8),): codes in row-major order, the least significant bits of a
            byte first, unused bits at the very end zero.

    Raises:
        ArtifactError: a value is outside the ranges above.
    """

    shape: tuple[int, int]
    bits: int
    kind: str
    shift: float
    scale: float
    stream: NDArray[np.uint8]

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise ArtifactError(fault)

    def _fault(self) -> str | None:
        if self.bits not in BITS:
            return f"bits must be 1, 2, 4 or 8, got {self.bits!r}"
        if self.kind not in CODEBOOKS:
            return f"codebook must be one of {', '.join(CODEBOOKS)}, got {self.kind!r}"
        if len(self.shape) != 2 or min(self.shape) < 1:
            return f"shape must be (out, in) with both at least 1, got {self.shape}"
        if not (math.isfinite(self.shift) and math.isfinite(self.scale)):
            return f"shift and scale must be finite, got shift {self.shift} and scale {self.scale}"
        if self.scale < 0:
            return f"scale must not be negative, got {self.scale}"
        return self._stream_fault()

    def _stream_fault(self) -> str | None:
        expected = stream_length(self.shape, self.bits)
        if self.stream.dtype != np.uint8 or self.stream.ndim != 1:
            return f"stream must be uint8 in one dimension, got {self.stream.dtype} in {self.stream.ndim}"
        if self.stream.size != expected:
            what = f"a {self.shape[0]}x{self.shape[1]} matrix of {self.bits} bits"
            return f"{what} needs a stream of {expected} bytes, got {self.stream.size}"
        used = self.shape[0] * self.shape[1] * self.bits % 8
        if used and int(self.stream[-1]) >> used:
            last = int(self.stream[-1])
            return f"the {8 - used} padding bits of the last byte must be zero, the byte is {last:#04x}"
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, the shift and the scale."""
        return self.stream.size + 8

    def codes(self) -> NDArray[np.int64]:
        """Return the level numbers, int64 (out, in), each in [0, 2**bits)."""
        out_features, in_features = self.shape
        if self.bits == 8:
            codes = self.stream
        elif self.bits == 1:
            codes = np.unpackbits(self.stream, count=out_features * in_features, bitorder="little")
        else:
            places = np.arange(0, 8, self.bits, dtype=np.uint8)
            spread = (self.stream[:, None] >> places) & np.uint8(2**self.bits - 1)
            codes = spread.reshape(-1)[: out_features * in_features]
        return codes.reshape(self.shape).astype(np.int64)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights, float32 (out, in): shift + scale * level, in float32 arithmetic."""
        from petkit.ops import lowbit_codebook

        levels = np.asarray(lowbit_codebook(self.bits, self.kind).numpy(), dtype=np.float32)
        weights: NDArray[np.float32] = (np.float32(self.shift) + np.float32(self.scale) * levels)[
            self.codes()
        ]
        return weights

    def rows(self) -> torch.Tensor:
        """Return the operators' layout, a new uint8 (out, ceil(in * bits / 8)): each row starts on a byte."""
        import torch

        return torch.from_numpy(self.row_array())

    def row_array(self) -> NDArray[np.uint8]:
        """Return what `rows` returns, as a NumPy array that shares nothing with the stream."""
        out_features, in_features = self.shape
        if in_features * self.bits % 8 == 0:
            return self.stream.reshape(out_features, -1).copy()
        used = in_features * self.bits
        flat = np.unpackbits(self.stream, count=out_features * used, bitorder="little")
        return np.packbits(flat.reshape(out_features, used), axis=1, bitorder="little")

    @classmethod
    def from_rows(
        cls,
        packed: torch.Tensor | NDArray[np.uint8],
        shift: float | torch.Tensor,
        scale: float | torch.Tensor,
        bits: int,
        in_features: int,
        kind: str = "normal_l1",
    ) -> PackedMatrix:
        """Make the flat stream from the operators' layout.

        Args:
            packed: uint8 (out, ceil(in_features * bits / 8)), as `petkit.ops.lowbit_quantize` returns it.
            shift: float32 scalar.
            scale: float32 scalar.
            bits: 1, 2, 4 or 8.
            in_features: columns of the matrix.
            kind: codebook.

        Returns:
            The same matrix as one flat stream.

        Raises:
            ArtifactError: the width of `packed` does not fit `in_features`, or a value is out of range.
        """
        rows = _as_numpy(packed)
        used = in_features * bits
        if rows.ndim != 2 or rows.shape[1] != (used + 7) // 8:
            raise ArtifactError(
                f"{in_features} codes of {bits} bits need rows of {(used + 7) // 8} bytes, got {rows.shape}"
            )
        if used % 8 == 0:
            stream = rows.reshape(-1).copy()
        else:
            spread = np.unpackbits(rows, axis=1, count=used, bitorder="little")
            stream = np.packbits(spread.reshape(-1), bitorder="little")
        return cls((rows.shape[0], in_features), bits, kind, float(shift), float(scale), stream)

    @classmethod
    def from_codes(
        cls, codes: NDArray[Any], shift: float, scale: float, bits: int, kind: str = "normal_l1"
    ) -> PackedMatrix:
        """Make a packed matrix from integer level numbers (out, in), each in [0, 2**bits).

        Raises:
            ArtifactError: a code is out of range, or `codes` is not a matrix.
        """
        if codes.ndim != 2 or codes.size == 0:
            raise ArtifactError(f"codes must be a matrix with at least one element, got shape {codes.shape}")
        if bits not in BITS or codes.min() < 0 or codes.max() >= 2**bits:
            raise ArtifactError(
                f"codes of {bits} bits must lie in [0, {2**bits}), got {codes.min()} to {codes.max()}"
            )
        places = np.arange(bits, dtype=np.uint8)
        spread = (codes.astype(np.uint8).reshape(-1, 1) >> places) & np.uint8(1)
        stream = np.packbits(spread.reshape(-1), bitorder="little")
        return cls((codes.shape[0], codes.shape[1]), bits, kind, float(shift), float(scale), stream)


def _as_numpy(array: Any) -> NDArray[np.uint8]:
    """Return a tensor or array as a contiguous NumPy array on the CPU."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    return np.ascontiguousarray(array)
