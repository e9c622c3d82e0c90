"""Products of a tall and a wide matrix, which adapters are: side by side, read by rows, of a smaller rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of a product that are made at a time, in float64.
BLOCK = 1 << 18


class Part(NamedTuple):
    """One adapter's share of a site: weight times scale times up, of what down gives."""

    down: Tensor
    """float32 (rank, in)."""

    up: Tensor
    """float32 (out, rank)."""

    scale: float
    """The adapter's own factor."""

    weight: float = 1.0
    """In the merge."""

    @property
    def factor(self) -> float:
        """Of the product."""
        return self.scale * self.weight


class Pair(NamedTuple):
    """An adapter at a site: scale times up, of what down gives."""

    down: Tensor
    """float32 (rank, in)."""

    up: Tensor
    """float32 (out, rank)."""

    scale: float


@dataclass(frozen=True)
class Product:
    """left @ right, which is made only where it is read.

    Args:
        left: float64 (rows, rank).
        right: float64 (rank, columns).
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.left), self.right.shape[1]

    def numbers(self, start: int, count: int) -> Iterator[tuple[int, Tensor]]:
        """Numbers of the product, row after row.

        Args:
            start: place of the first.
            count: how many.

        Yields:
            Pieces, float64 and flat, and the place of the first number of each behind `start`.
        """
        columns = self.right.shape[1]
        done = 0
        while done < count:
            first, inside = divmod(start + done, columns)
            rows = min(BLOCK // columns, -(-(inside + count - done) // columns))
            last = min(len(self.left), first + max(1, rows))
            made = (self.left[first:last] @ self.right).flatten()[inside : inside + count - done]
            yield done, made
            done += len(made)


def side_by_side(parts: Sequence[Part]) -> Pair:
    """Bottlenecks side by side: the sum of their outputs, exactly.

    Args:
        parts: of one site.

    Returns:
        down (sum of ranks, in), up (out, sum of ranks) and their scale. It is the parts' own where they have
        the same, so that one part of weight 1 stays as it is to the last bit; otherwise up holds the factors.
    """
    scales = {part.scale for part in parts}
    shared = scales.pop() if len(scales) == 1 else None
    ups = [_times(part.up, part.weight if shared is not None else part.factor) for part in parts]
    down = torch.cat([part.down for part in parts])
    return Pair(down, torch.cat(ups, dim=1), 1.0 if shared is None else shared)


def _times(matrix: Tensor, factor: float) -> Tensor:
    # One rounding: a factor rounded to float32 first would be another.
    return (matrix.double() * factor).float()


def of_rank(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of a smaller rank.

    Args:
        down: (larger rank, in).
        up: (out, larger rank).
        rank: of the result.

    Returns:
        down (rank, in) and up (out, rank), which share the singular values evenly; and the Frobenius norm of
        what is lost.

    Source:
        Eckart and Young 1936, by QR of both factors: the product itself is never made.
    """
    left, small_up = torch.linalg.qr(up.double())
    right, small_down = torch.linalg.qr(down.double().T)
    u, values, v = torch.linalg.svd(small_up @ small_down.T)
    found = _shared(left @ u[:, :rank], values[:rank], v[:rank] @ right.T)
    return (*found, float(values[rank:].norm()))


def nearest_of_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of a rank to a matrix.

    Args:
        matrix: (out, in).
        rank: of the result.

    Returns:
        As `of_rank`.

    Source:
        Eckart and Young 1936.
    """
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (*_shared(u[:, :rank], values[:rank], v[:rank]), float(values[rank:].norm()))


def _shared(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    root = values.sqrt()
    return (root[:, None] * right).float(), (left * root).float()


def norm(pair: Pair) -> float:
    """Frobenius norm of scale * up @ down, without making it."""
    _, left = torch.linalg.qr(pair.up.double())
    _, right = torch.linalg.qr(pair.down.double().T)
    return abs(pair.scale) * float((left @ right.T).norm())


def distance(one: Pair, other: Pair) -> float:
    """Frobenius norm of the difference of two products of one shape."""
    up = torch.cat([one.up.double() * one.scale, other.up.double() * -other.scale], dim=1)
    return norm(Pair(torch.cat([one.down.double(), other.down.double()]), up, 1.0))
