"""Models against their base, tensor by tensor and piece by piece. Begin at `analyze_state_dicts`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from petkit.errors import ConfigError
from petkit.merging.analysis.footprint import (
    CHUNK,
    ETA,
    Room,
    Tally,
    check_eta,
    cosine,
    random_overlap,
    ratio,
    shifts_of,
    tally,
)
from petkit.merging.analysis.kinds import KINDS, kind_of, layers_of
from petkit.merging.analysis.projection import DIMENSIONS, Projection, projected_cosine
from petkit.merging.plan import check_same
from petkit.merging.slices import Buffers, Reading, Slices, check_shapes
from petkit.merging.sources import Source, StateDict
from petkit.merging.state_dicts import FLOATS, common_dtype
from petkit.merging.tensors import check_finite

# Numbers of a model that are read at a time: whole chunks.
PIECE = 8 * CHUNK


@dataclass(frozen=True)
class Settings:
    """How shifts are looked at.

    Args:
        eta: relative threshold of a change.
        dimensions: of the projection, a power of 2.
        seed: of the projection.
        piece: numbers that are read at a time, a multiple of 65,536; it changes no result.
    """

    eta: float = ETA
    dimensions: int = DIMENSIONS
    seed: int = 0
    piece: int = PIECE


@dataclass(frozen=True)
class Measured:
    """Sums over models' weights.

    Args:
        names: of the models.
        cells: sums by layer and kind.
        projected: float64 (dimensions, n, n), as `Projection.add` leaves it.
        projection: that was used.
        eta: that was used.
        tensors: that were looked at.
        left_out: names of those that are no floats.
    """

    names: tuple[str, ...]
    cells: Mapping[tuple[str, str], Tally]
    projected: Tensor
    projection: Projection
    eta: float
    tensors: int
    left_out: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """Every measure of the weights, as plain values: whole, by kind, by layer."""
        layers = list(dict.fromkeys(layer for layer, _ in self.cells))
        found = {kind for _, kind in self.cells}
        whole = self._measures(self._sum())
        for pair, (i, j) in zip(whole["pairs"], self._pairs(), strict=True):
            pair["cosine_projected"] = projected_cosine(self.projected, i, j)
        return {
            "eta": self.eta,
            "projection": {
                "dimensions": self.projection.dimensions,
                "seed": self.projection.seed,
                "standard_deviation": self.projection.standard_deviation,
            },
            "tensors": self.tensors,
            "left_out": list(self.left_out),
            "whole": whole,
            "kinds": {kind: self._measures(self._sum(kind=kind)) for kind in KINDS if kind in found},
            "layers": {layer: self._measures(self._sum(layer=layer)) for layer in layers},
        }

    def _sum(self, layer: str | None = None, kind: str | None = None) -> Tally:
        total = Tally.empty(len(self.names))
        for (own_layer, own_kind), one in self.cells.items():
            if layer in (None, own_layer) and kind in (None, own_kind):
                total.add(one)
        return total

    def _measures(self, sums: Tally) -> dict[str, Any]:
        squares = sums.dots.diagonal().tolist()
        changed = sums.both.diagonal().tolist()
        models = [
            {
                "model": name,
                "footprint": ratio(own, sums.count),
                "norm": sqrt(square),
                "relative_norm": ratio(sqrt(square), sqrt(sums.base_square)),
            }
            for name, own, square in zip(self.names, changed, squares, strict=True)
        ]
        return {
            "parameters": sums.count,
            "base_norm": sqrt(sums.base_square),
            "models": models,
            "pairs": [self._pair(sums, i, j) for i, j in self._pairs()],
        }

    def _pairs(self) -> Iterator[tuple[int, int]]:
        return combinations(range(len(self.names)), 2)

    def _pair(self, sums: Tally, i: int, j: int) -> dict[str, Any]:
        both, first, second = (int(sums.both[place]) for place in ((i, j), (i, i), (j, j)))
        overlap = ratio(both, first + second - both)
        chance = random_overlap(first / max(sums.count, 1), second / max(sums.count, 1))
        squares = sums.both_squares
        return {
            "models": [self.names[i], self.names[j]],
            "changed_by_both": ratio(both, sums.count),
            "jaccard": overlap,
            "jaccard_random": chance,
            "jaccard_excess": None if overlap is None or chance is None else overlap - chance,
            "sign_conflict": ratio(int(sums.conflicts[i, j]), both),
            "cosine": cosine(float(sums.dots[i, j]), float(sums.dots[i, i]), float(sums.dots[j, j])),
            "cosine_overlap": cosine(float(sums.both_dots[i, j]), float(squares[i, j]), float(squares[j, i])),
        }


def analyze_state_dicts(
    models: Mapping[str, Mapping[str, Tensor]],
    base: Mapping[str, Tensor],
    *,
    eta: float = ETA,
    dimensions: int = DIMENSIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare what models changed, in memory.

    Args:
        models: state dicts by name, two or more, of the base's names and shapes.
        base: what they were fine-tuned from.
        eta: a weight was changed where |w - w0| > eta max(|w|, |w0|).
        dimensions: of the random projection, a power of 2.
        seed: of the projection.

    Returns:
        As `Measured.report`. A measure of nothing, such as the cosine of a shift of 0, is None.

    Raises:
        ConfigError: fewer than two models, or a setting out of range.
        InputError: names or shapes differ, or a number is not finite; the tensor and the model are named.

    Source:
        To Mix or To Merge (2602.12566), section 4.1 of whose analyses these are; random signs stand for its
        orthogonal projection.
    """
    sources = {name: StateDict(name, tensors) for name, tensors in models.items()}
    settings = Settings(eta, dimensions, seed)
    return measure(sources, StateDict("base", base), settings).report()


def measure(
    models: Mapping[str, Source],
    base: Source,
    settings: Settings,
    advance: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Read models and their base once, and add up what their measures need.

    Args:
        models: open models by name, two or more.
        base: what they were fine-tuned from, open.
        settings: thresholds and the like.
        advance: told how many more bytes are read.

    Returns:
        The sums. They are the same, bit for bit, whatever the pieces and the order of tensors in files.

    Raises:
        ConfigError, InputError: as `analyze_state_dicts`.
    """
    _check(models, settings)
    projection = Projection(settings.dimensions, settings.seed)
    sources = list(models.values())
    check_same(base, sources)
    # In the order of names, which is no file's business.
    names = sorted(name for name in base.entries if base.entries[name].dtype in FLOATS)
    left_out = sorted(set(base.entries) - set(names))
    buffers, room = Buffers(), Room(len(sources))
    tensors = [_slices(name, sources, base, buffers) for name in names]
    layers = layers_of(names)
    cells: dict[tuple[str, str], Tally] = {
        (layers[name], kind_of(name)): Tally.empty(len(sources)) for name in layers
    }
    projected = torch.zeros(settings.dimensions, len(sources), len(sources), dtype=torch.float64)
    for one in tensors:
        _add(one, cells[layers[one.name], kind_of(one.name)], projected, projection, settings, room, advance)
    return Measured(tuple(models), cells, projected, projection, settings.eta, len(tensors), tuple(left_out))


def _check(models: Mapping[str, Source], settings: Settings) -> None:
    if len(models) < 2:
        only = f" ({next(iter(models))})" if models else ""
        raise ConfigError(
            f"models are compared in pairs: at least two are needed beside the base, got {len(models)}{only}"
        )
    check_eta(settings.eta)
    if settings.piece < CHUNK or settings.piece % CHUNK:
        raise ConfigError(f"piece must be a multiple of {CHUNK}, got {settings.piece}")


def _slices(name: str, sources: Sequence[Source], base: Source, buffers: Buffers) -> Slices:
    readings = [Reading(source, name) for source in sources]
    origin = Reading(base, name)
    shape = check_shapes(name, [origin, *readings])
    dtypes = {one.source.entries[name].dtype for one in (origin, *readings)}
    return Slices(name, shape, readings, origin, common_dtype(dtypes), buffers)


def _add(
    one: Slices,
    cell: Tally,
    projected: Tensor,
    projection: Projection,
    settings: Settings,
    room: Room,
    advance: Callable[[int], None],
) -> None:
    """Add a tensor up."""
    for piece in one.pieces(settings.piece):
        check_finite(one, piece)
        assert piece.base is not None
        for start in range(0, len(piece.base), CHUNK):
            base = piece.base[start : start + CHUNK]
            chunk = shifts_of(piece.models[:, start : start + CHUNK], base, settings.eta, room)
            cell.add(tally(chunk, room))
            projection.add(projected, chunk, one.name, (piece.start + start) // CHUNK, room)
        readings = (*one.models, one.base)
        width = sum(each.source.entries[one.name].dtype.itemsize for each in readings if each)
        advance(len(piece.base) * width)
