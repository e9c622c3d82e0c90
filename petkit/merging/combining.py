"""What a method decides for a tensor: how its pieces, or the whole of it, become the merged numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from petkit.merging.parameters import Parameter, Values, check_agreeing, normalized
from petkit.merging.slices import Piece, Slices, stream_key
from petkit.ops.merge_deltas import Consensus, Terms, merge_deltas
from petkit.ops.merge_linear import merge_linear

Combine = Callable[[Piece], Tensor]


class Chosen(NamedTuple):
    """How one tensor is merged."""

    combine: Combine
    """From a piece to the merged numbers, float32 or of the dtype that was asked for."""

    in_pieces: bool = True
    """False where the whole tensor has to be there at once."""

    size: int | None = None
    """Numbers of a piece, where a method needs whole rows."""

    drops: bool = True
    """Whether numbers may be left out, so that one that is not finite need not be seen in the result."""


class Method(Protocol):
    """A method of merging.

    A method looks at all pieces of a tensor, once or more often, and chooses; the pieces are then read again.
    """

    @property
    def name(self) -> str:
        """As in `merge_method`."""

    @property
    def title(self) -> str:
        """What it does, in a line."""

    @property
    def paper(self) -> str:
        """Where it is from."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What it may be told."""

    @property
    def needs_base(self) -> bool:
        """Whether it works on differences to a base."""

    @property
    def models(self) -> tuple[int, int]:
        """The fewest and the most models, the base not counted."""

    def survey(self, tensors: Sequence[tuple[Slices, Values]]) -> Any:
        """What has to be known of all tensors before the first is merged; None where nothing has."""

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """How a tensor is merged, its result in a dtype."""


class TensorByTensor:
    """A method that merges each tensor by itself."""

    def survey(self, tensors: Sequence[tuple[Slices, Values]]) -> Any:
        """Nothing."""


def by_weights(weights: Sequence[float], dtype: torch.dtype) -> Chosen:
    """The weighted sum of the models.

    Args:
        weights: of each.
        dtype: of the result.
    """
    row = torch.tensor(weights, dtype=torch.float64)
    return Chosen(lambda piece: merge_linear(piece.models, row, dtype), drops=False)


def by_weights_with_base(weights: Sequence[float], of_base: float, dtype: torch.dtype) -> Chosen:
    """The weighted sum of the models and of the base.

    Args:
        weights: of the models.
        of_base: of the base.
        dtype: of the result.
    """
    row = torch.tensor([*weights, of_base], dtype=torch.float64)

    def combine(piece: Piece) -> Tensor:
        assert piece.base is not None
        return merge_linear(torch.cat([piece.models, piece.base[None]]), row, dtype)

    return Chosen(combine, drops=False)


@dataclass(frozen=True)
class Deltas:
    """Which differences to the base count, and how they are added."""

    values: Values
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    keep: Sequence[float] | None = None
    consensus: Consensus = "none"
    normalize: bool = False
    factor: float = 1.0

    def chosen(self, slices: Slices, dtype: torch.dtype) -> Chosen:
        """The base and the sum of differences, piece by piece."""
        count = len(slices.models)
        if self.normalize:
            # Refuse weights that add up to nothing.
            if self.consensus == "none":
                normalized(self.values.of("weight"), slices.name)
            else:
                check_agreeing(tuple(self.values.of("weight")))
        keys = [stream_key(self.values.seed, slices.name, i) for i in range(count)]
        terms = Terms(
            weights=torch.tensor(self.values.of("weight"), dtype=torch.float64),
            low=_vector(self.low, 0.0, count),
            high=_vector(self.high, math.inf, count),
            keep=_vector(self.keep, 1.0, count),
            keys=torch.tensor(keys, dtype=torch.int64),
        )

        def combine(piece: Piece) -> Tensor:
            assert piece.base is not None
            return merge_deltas(
                piece.base,
                piece.models,
                terms,
                start=piece.start,
                consensus=self.consensus,
                normalize=self.normalize,
                factor=self.factor,
                dtype=dtype,
            )

        # Trimming leaves the largest magnitudes, and nan, in.
        return Chosen(combine, drops=self.high is not None or self.keep is not None)


def _vector(given: Sequence[float] | None, default: float, count: int) -> Tensor:
    return torch.tensor([default] * count if given is None else list(given), dtype=torch.float64)
