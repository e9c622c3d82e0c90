"""How long a merge will take and how much memory, from short trials on this machine. Begin at `estimate`."""

from __future__ import annotations

import hashlib
import math
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from petkit.artifacts.files import write_error
from petkit.merging.output import AHEAD
from petkit.merging.plan import Plan, Planned
from petkit.merging.slices import HELD, PIECE, Buffers, Piece, Reading, Slices
from petkit.merging.sources import StateDict
from petkit.merging.tensors import merged_pieces

# Rows and columns of the matrices that are merged on trial: the smaller ones tell how the time grows.
SIDES = (256, 1024)
SAMPLE = 1 << 20
SAMPLES = 48
WRITTEN = 1 << 26
REPEATS = 3
# What selection by magnitude holds of a model's tensor: a sample and a range of numbers, or two histograms.
SELECTION = 4 << 20
# Float32 copies of all models' differences that methods on whole tensors make.
COPIES = 3


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second.

    Args:
        read: bytes of the models' files.
        write: bytes to the result's disk.
        hash: bytes of SHA-256 on one core.
    """

    read: float
    write: float
    hash: float


@dataclass(frozen=True)
class Estimate:
    """What a merge will take, its start-up left out.

    Args:
        seconds: in all.
        reading: seconds of the disk for the models.
        writing: seconds of the disk for the result.
        arithmetic: seconds of the method.
        hashing: seconds of one core, for the models and twice for the result.
        peak_bytes: memory of the process, what it has now included.
    """

    seconds: float
    reading: float
    writing: float
    arithmetic: float
    hashing: float
    peak_bytes: int


def estimate(plan: Plan, output: Path) -> Estimate:
    """Say what a merge will take.

    Args:
        plan: of it.
        output: the folder that will be written; nothing stays there.

    Returns:
        The estimate. Parts that run beside each other overlap, so that the whole is less than their sum.

    Raises:
        PetkitError: the disk of the output cannot be written.
    """
    present = _resident()
    rates = Rates(_read_rate(plan), _write_rate(output), _hash_rate())
    trials = _Trials(plan)
    reading = sum(_read_bytes(one) * trials.passes(one) for one in plan.tensors) / rates.read
    writing = plan.nbytes / rates.write
    arithmetic = sum(trials.seconds(one) for one in plan.tensors if one.is_merged)
    hashing = (plan.read_nbytes + 2 * plan.nbytes) / rates.hash
    cores = len(os.sched_getaffinity(0))
    work = arithmetic * min(cores, torch.get_num_threads()) + hashing
    # Afterwards the result is read back.
    seconds = max(reading + writing, arithmetic, work / cores) + plan.nbytes / rates.hash
    return Estimate(seconds, reading, writing, arithmetic, hashing, present + _peak(plan, trials))


def as_content(found: Estimate) -> dict[str, float]:
    """An estimate for JSON."""
    return asdict(found)


class _Trials:
    """The method of a plan on random matrices of two sizes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        merged = [one for one in plan.tensors if one.is_merged]
        self._pattern = max(merged, key=lambda one: one.slices.count, default=None)
        self.is_in_pieces, self._passes = True, 1
        self._unit, self._power = 0.0, 1.0
        if self._pattern is not None:
            self._run(self._pattern)

    def passes(self, one: Planned) -> int:
        """How often a tensor is read."""
        # What is held is not read again.
        return 1 if one.slices.is_held else self._passes

    def seconds(self, one: Planned) -> float:
        """What a tensor takes."""
        seconds: float = self._unit * max(one.slices.count, 1) ** self._power
        return seconds

    def _run(self, pattern: Planned) -> None:
        took = []
        for side in SIDES:
            # One piece, so that as many are asked for as there are passes.
            buffers = _Counting()
            slices = _random(pattern, side, buffers)
            self._merge(slices, pattern)
            self._passes = buffers.count
            took.append(min(_timed(partial(self._merge, slices, pattern)) for _ in range(REPEATS)))
        small, large = (side * side for side in SIDES)
        # Pieces are merged one by one, whole tensors at more than their size.
        steepest = 1.0 if self.is_in_pieces else 1.6
        self._power = min(steepest, max(1.0, math.log(took[1] / took[0]) / math.log(large / small)))
        self._unit = took[1] / large**self._power

    def _merge(self, slices: Slices, pattern: Planned) -> None:
        surveyed = self.plan.method.survey([(slices, pattern.values)])
        chosen = self.plan.method.choose(slices, pattern.values, surveyed, pattern.dtype)
        self.is_in_pieces = chosen.in_pieces
        for _ in merged_pieces(self.plan.method, slices, pattern.values, surveyed, pattern.dtype):
            pass


class _Counting(Buffers):
    """Buffers that count the pieces that were asked for."""

    count = 0

    def asked(self, slices: Slices, start: int, count: int) -> Future[Piece]:
        self.count += 1
        return super().asked(slices, start, count)


def _random(pattern: Planned, side: int, buffers: Buffers) -> Slices:
    source = torch.Generator().manual_seed(0)

    def reading() -> Reading:
        numbers = torch.randn(side, side, generator=source).to(pattern.slices.dtype)
        return Reading(StateDict("trial", {"w": numbers}), "w")

    models = [reading() for _ in pattern.slices.models]
    base = reading() if pattern.slices.base else None
    return Slices("w", (side, side), models, base, pattern.slices.dtype, buffers)


def _peak(plan: Plan, trials: _Trials) -> int:
    """Bytes of buffers, of pieces on their way to the disk and of selection."""
    most = 0
    for one in plan.tensors:
        rows = len(one.slices.models) + (one.slices.base is not None)
        count = one.slices.count if not trials.is_in_pieces else min(one.slices.count, PIECE)
        buffers = rows * count * one.slices.dtype.itemsize
        if trials.is_in_pieces:
            buffers *= HELD
        else:
            buffers += COPIES * rows * count * 4
        result = (AHEAD + 2) * count * one.dtype.itemsize
        most = max(most, buffers + result + rows * SELECTION)
    return most


def _read_bytes(one: Planned) -> int:
    readings = [*one.slices.models, *([one.slices.base] if one.slices.base else [])]
    return sum(reading.source.entries[reading.tensor].nbytes for reading in readings)


def _read_rate(plan: Plan) -> float:
    """Bytes a second, of pieces here and there in the models."""
    chosen = random.Random(0)
    tensors = [one for one in plan.tensors if one.slices.count]
    weights = Counter({place: one.nbytes for place, one in enumerate(tensors)})
    if not tensors:
        return math.inf
    done, started = 0, time.perf_counter()
    for place in chosen.choices(list(weights), list(weights.values()), k=SAMPLES):
        reading = chosen.choice(tensors[place].slices.models)
        entry = reading.source.entries[reading.tensor]
        out = torch.empty(min(entry.count, SAMPLE), dtype=entry.dtype)
        reading.source.read(reading.tensor, chosen.randrange(entry.count - len(out) + 1), out)
        done += out.nbytes
    return done / (time.perf_counter() - started)


def _write_rate(output: Path) -> float:
    folder = next(one for one in (output.absolute(), *output.absolute().parents) if one.is_dir())
    data = os.urandom(WRITTEN // 16) * 16
    try:
        # A file without a name, gone when it is closed.
        with tempfile.TemporaryFile(dir=folder) as file:
            started = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return WRITTEN / (time.perf_counter() - started)
    except OSError as error:
        raise write_error(folder, error) from error


def _hash_rate() -> float:
    data = bytes(1 << 23)
    return len(data) / min(_timed(lambda: hashlib.sha256(data).digest()) for _ in range(REPEATS))


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
