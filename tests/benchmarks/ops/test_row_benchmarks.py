"""What the benchmarks of operators over rows of logits compare is the same thing."""

import logging
import sys

import pytest
import torch

from petkit.benchmarks.ops import bench_divergence, bench_selected_log_probs


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (bench_divergence, bench_selected_log_probs):
        monkeypatch.setattr(module, "ROWS", 6)
        monkeypatch.setattr(module, "VOCAB", 300)
    # It takes long to compile.
    monkeypatch.setattr(bench_divergence, "compiled", lambda expression, *_: expression)


def compare(cases):
    for case in cases:
        ours = case.petkit()
        for name, peer in case.peers.items():
            theirs = peer()
            assert theirs.shape == ours.shape
            # TRL computes in the logits' own dtype, and is off by up to 7 %.
            bound = 1e-5 if ours.dtype == torch.float32 else 0.1
            assert float((theirs - ours).float().norm()) <= bound * float(ours.float().norm()), (
                case.name,
                name,
            )


@pytest.mark.filterwarnings("ignore")  # trl's own import
def test_divergence():
    cases = bench_divergence.cases()
    assert len(cases) == 8
    in_place = [case for case in cases if case.memory_limit is not None]
    compare([case for case in cases if case not in in_place])
    assert len(in_place) == 2
    for case in in_place:
        (same,) = (other for other in cases if other.name + " in place" == case.name)
        expected = same.petkit()
        assert torch.equal(case.petkit(), expected)
        # The logits are gone.
        assert not torch.equal(case.petkit(), expected)


def test_without_trl_its_peer_is_left_out(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "trl.experimental.gkd", None)
    with caplog.at_level(logging.WARNING, logger="petkit"):
        cases = bench_divergence.cases()
    assert "trl is not installed and is left out" in caplog.text
    assert not any(bench_divergence.TRL in {**case.peers, **case.goals} for case in cases)


def test_selected_log_probs():
    compare(bench_selected_log_probs.cases())
