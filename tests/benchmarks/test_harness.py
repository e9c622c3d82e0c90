import time

import pytest
import torch

from petkit.benchmarks.harness import Case, Timing, measure, peak_extra_bytes, read_bandwidth, summarise


def sleeper(seconds):
    return lambda: time.sleep(seconds)


def test_a_ratio_is_the_peers_time_over_ours():
    case = Case("naps", sleeper(0.002), {"slow": sleeper(0.008)}, moved_bytes=10, goals={"slow": 2.0})
    outcome = measure(case, threads=1, bandwidth=5000.0, seconds=0.05, least_rounds=5)
    # 4 is the ratio of the shortest naps; on a busy machine any nap may last longer than asked.
    assert 1.5 < outcome.ratio("slow") < 8
    assert outcome.bandwidth_fraction == pytest.approx(10 / outcome.petkit.median / 5000)
    assert outcome.missed_goals() == []


def test_a_missed_goal_is_named_with_both_numbers():
    case = Case("naps", sleeper(0.002), {"equal": sleeper(0.002)}, goals={"equal": 50.0})
    outcome = measure(case, threads=1, bandwidth=1.0, seconds=0.01, least_rounds=3)
    (missed,) = outcome.missed_goals()
    assert missed.startswith("naps: equal ")
    assert missed.endswith("goal 50")
    assert outcome.to_dict()["missed"] == [missed]


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
