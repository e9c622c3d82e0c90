"""Times petkit and its peers side by side, so that only ratios of one run are ever compared.

The contenders of a case take turns, round after round: a neighbour that steals the machine for a second slows
all of them, not one. A figure is the median over the rounds; the quartiles say how far to trust it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One comparison: what petkit runs, what the peers run, and how many bytes have to move."""

    name: str
    petkit: Run
    peers: Mapping[str, Run]
    moved_bytes: int | None = None
    """Bytes that any implementation must read or write; None where memory is not the bound."""
    goals: Mapping[str, float] = field(default_factory=dict)
    """Least ratio to a peer, by its name; the key `bandwidth` is a fraction of the read bandwidth."""
    memory_limit: int | None = None
    """Most bytes that a call may add at its peak, its result among them; None: not measured."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender over the rounds."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Outcome:
    """A case measured at one thread count."""

    case: str
    threads: int
    petkit: Timing
    peers: Mapping[str, Timing]
    bandwidth_fraction: float | None
    goals: Mapping[str, float]
    memory: Mapping[str, int | None] = field(default_factory=dict)
    """Bytes that a call of each contender adds at its peak, where the case has a limit for petkit's."""
    memory_limit: int | None = None

    def ratio(self, peer: str) -> float:
        """How many times faster petkit was than `peer` (below 1: slower)."""
        return self.peers[peer].median / self.petkit.median

    def missed_goals(self) -> list[str]:
        """The goals that this run did not reach, each in words."""
        missed = []
        for name, goal in self.goals.items():
            got = self.bandwidth_fraction if name == "bandwidth" else self.ratio(name)
            if got is not None and got < goal:
                missed.append(f"{self.case}: {name} {got:.2f}, goal {goal:g}")
        if self.exceeds_memory():
            missed.append(f"{self.case}: memory {self.memory['petkit']}, limit {self.memory_limit}")
        return missed

    def exceeds_memory(self) -> bool:
        """Did petkit add more bytes than the case allows?"""
        added = self.memory.get("petkit")
        return added is not None and self.memory_limit is not None and added > self.memory_limit

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; seconds are kept so that a reader can recompute every ratio."""
        return {
            "case": self.case,
            "threads": self.threads,
            "petkit": vars(self.petkit),
            "peers": {
                name: vars(timing) | {"ratio": self.ratio(name)} for name, timing in self.peers.items()
            },
            "bandwidth_fraction": self.bandwidth_fraction,
            "goals": dict(self.goals),
            **({"memory": dict(self.memory), "memory_limit": self.memory_limit} if self.memory else {}),
            "missed": self.missed_goals(),
        }


def summarise(seconds: list[float]) -> Timing:
    """Median and quartiles of a list of at least two durations."""
    low, _, high = statistics.quantiles(seconds, n=4)
    return Timing(statistics.median(seconds), low, high, len(seconds))


def measure(
    case: Case, threads: int, bandwidth: float, seconds: float = 3.0, least_rounds: int = 7
) -> Outcome:
    """Run every contender of `case` in turn until `seconds` have passed.

    Args:
        case: what to compare.
        threads: torch's thread count while measuring; restored afterwards.
        bandwidth: measured read bandwidth at this thread count, bytes per second.
        seconds: time to spend after the warm-up.
        least_rounds: rounds to run whatever the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        contenders = {"petkit": case.petkit, **case.peers}
        inner = {name: _repeats(run) for name, run in contenders.items()}
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        memory = {} if case.memory_limit is None else _memory(contenders)
        end = time.perf_counter() + seconds
        while len(taken["petkit"]) < least_rounds or time.perf_counter() < end:
            for name, run in contenders.items():
                taken[name].append(_time(run, inner[name]))
    finally:
        torch.set_num_threads(before)
    timings = {name: summarise(values) for name, values in taken.items()}
    ours = timings.pop("petkit")
    fraction = None if case.moved_bytes is None else case.moved_bytes / ours.median / bandwidth
    return Outcome(case.name, threads, ours, timings, fraction, case.goals, memory, case.memory_limit)


def _memory(contenders: Mapping[str, Run]) -> dict[str, int | None]:
    return {name: peak_extra_bytes(run) for name, run in contenders.items()}


def _repeats(run: Run, target: float = 2e-3) -> int:
    """Calls per timing, so that one timing is long against the clock's step; warms up as a side effect."""
    run()
    once = max(_time(run, 1), 1e-7)
    return max(1, min(1000, round(target / once)))


def _time(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def read_bandwidth(threads: int, mebibytes: int = 1024) -> float:
    """Bytes per second of reading a float32 array that no cache holds, the best of a few sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = torch.ones(mebibytes << 18)
        data.sum()
        return data.nbytes / min(_time(data.sum, 1) for _ in range(7))
    finally:
        torch.set_num_threads(before)


def peak_extra_bytes(run: Run) -> int | None:
    """Resident memory that one call of `run` adds at its peak; None where there is no Linux /proc."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # so that freed heap counts again
    if trim is not None:
        trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status_bytes("VmRSS")
    kept = run()
    peak = _status_bytes("VmHWM")
    del kept
    return max(0, peak - before)


def resident_bytes() -> int:
    """Resident memory of this process in bytes (Linux)."""
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def environment(bandwidth: Mapping[int, float]) -> dict[str, Any]:
    """What a reader must know to compare two result files; the bandwidth where it was measured."""
    from petkit import __version__
    from petkit.ops import backend

    measured = {str(threads): round(value / 1e9, 1) for threads, value in bandwidth.items()}
    return {
        "petkit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "kernels": backend()["cpu_kernels"],
        **({"read_bandwidth_gb_s": measured} if measured else {}),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
