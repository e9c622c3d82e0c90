from types import SimpleNamespace

import pytest
import torch

from petkit.benchmarks import harness
from petkit.benchmarks.harness import Case, Timing, measure, peak_extra_bytes, read_bandwidth, summarise


@pytest.fixture
def sleeper(monkeypatch):
    """`sleeper(0.5)` gives a run that takes so many seconds of a clock that nothing else moves."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def make(seconds):
        return lambda: setattr(clock, "now", clock.now + seconds)

    return make


def test_a_ratio_is_the_peers_time_over_ours(sleeper):
    case = Case("naps", sleeper(0.002), {"slow": sleeper(0.008)}, moved_bytes=10, goals={"slow": 3.9})
    outcome = measure(case, threads=1, bandwidth=10_000.0, seconds=0.05, least_rounds=5)
    assert outcome.ratio("slow") == pytest.approx(4)
    assert outcome.petkit.median == pytest.approx(0.002)
    assert outcome.bandwidth_fraction == pytest.approx(0.5)
    assert outcome.missed_goals() == []


def test_a_missed_goal_is_named_with_both_numbers(sleeper):
    case = Case("naps", sleeper(0.002), {"equal": sleeper(0.002)}, goals={"equal": 50.0})
    outcome = measure(case, threads=1, bandwidth=1.0, seconds=0.01, least_rounds=3)
    assert outcome.missed_goals() == ["naps: equal 1.00, goal 50"]
    assert outcome.to_dict()["missed"] == outcome.missed_goals()


def test_the_thread_count_is_put_back():
    before = torch.get_num_threads()
    seen = []
    case = Case("threads", lambda: seen.append(torch.get_num_threads()), {})
    measure(case, threads=1, bandwidth=1.0, seconds=0.0, least_rounds=2)
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_quartiles_enclose_the_median():
    timing = summarise([3.0, 1.0, 2.0, 5.0, 4.0])
    assert timing == Timing(3.0, 1.5, 4.5, 5)


def test_peak_memory_counts_what_is_freed_again():
    pages = 64 << 20

    def allocate():
        return float(torch.ones(pages // 4).sum())

    extra = peak_extra_bytes(allocate)
    if extra is None:
        pytest.skip("no writable /proc/self/clear_refs on this system")
    assert 0.9 * pages < extra < 1.5 * pages


def test_bandwidth_is_that_of_a_machine_of_this_century():
    assert 1e8 < read_bandwidth(1, mebibytes=32) < 1e13
