"""Proposals: a function of the seed and of the trials so far, whatever was killed in between."""

import logging
import sys

import pytest

from petkit.errors import ArtifactError, MissingError
from petkit.merging.ranges import Range
from petkit.merging.study import JOURNAL, Trial, check_optuna, open_study

RANGES = (Range("a", 0, 1, 0.5), Range("b", -1, 2, 0.25))


def score(values):
    return -((values["a"] - 0.2) ** 2) - (values["b"] - 1) ** 2


def go_on(folder, count, seed=3):
    """Try numbers; every fifth fails."""
    with open_study(folder, RANGES, seed, "maximize") as study:
        for _ in range(count):
            one = study.propose()
            failed = one.trial % 5 == 4
            study.record(one, None if failed else score(one.parameters), 0.5, "why" if failed else None)
        return study.trials


def break_off(folder, seed=3):
    """Die with a trial in the air."""
    with open_study(folder, RANGES, seed, "maximize") as study:
        return study.propose()


def made(path):
    path.mkdir()
    return path


def test_trials_come_back(tmp_path):
    trials = go_on(tmp_path, 6)
    assert [one.trial for one in trials] == list(range(6))
    assert trials[0] == Trial(0, {"a": 0.5, "b": 0.25}, score({"a": 0.5, "b": 0.25}), 0.5)
    assert (trials[4].score, trials[4].error) == (None, "why")
    assert trials[4].record["status"] == "failed"
    assert all(0 <= one.parameters["a"] <= 1 and -1 <= one.parameters["b"] <= 2 for one in trials)
    assert go_on(tmp_path, 0) == trials


def test_the_seed_decides(tmp_path):
    once, again = go_on(made(tmp_path / "1"), 14), go_on(made(tmp_path / "2"), 14)
    other = go_on(made(tmp_path / "3"), 14, seed=4)
    assert once == again
    assert once[0] == other[0]
    assert all(a.parameters != b.parameters for a, b in zip(once[1:], other[1:], strict=True))


@pytest.mark.parametrize("first", [0, 1, 7, 12])
def test_parts_are_the_whole_whatever_is_broken_off(tmp_path, first):
    whole = go_on(made(tmp_path / "whole"), 16)
    parts = made(tmp_path / "parts")
    go_on(parts, first)
    lost = break_off(parts)
    assert (lost.trial, lost.parameters) == (first, whole[first].parameters)
    break_off(parts)
    assert go_on(parts, 16 - first) == whole


def test_what_a_killed_process_leaves_is_mended(tmp_path):
    trials = go_on(tmp_path, 3)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    (tmp_path / f"{JOURNAL}.lock").symlink_to("nowhere")
    assert go_on(tmp_path, 0) == trials
    assert len(go_on(tmp_path, 2)) == 5
    assert not (tmp_path / f"{JOURNAL}.lock").is_symlink()


def test_a_damaged_journal(tmp_path):
    go_on(tmp_path, 3)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:3], b"nonsense\n", *lines[3:]]))
    with pytest.raises(ArtifactError, match=r"journal is damaged: .*begin anew with --overwrite"):
        go_on(tmp_path, 0)


def test_optuna_speaks_through_our_log(tmp_path, caplog, capsys, monkeypatch):
    # Commands that ran before leave a handler that prints to stderr.
    monkeypatch.setattr(logging.getLogger("petkit"), "handlers", [])
    logger = logging.getLogger("optuna")
    before = list(logger.handlers), logger.propagate
    with caplog.at_level(logging.DEBUG, logger="petkit"):
        go_on(tmp_path, 1)
        with open_study(tmp_path, RANGES, 0, "maximize"):
            logger.getChild("x").warning("careful")
    assert ("petkit.merging.study", logging.WARNING, "careful") in caplog.record_tuples
    created = [one for one in caplog.records if "new study created" in one.getMessage()]
    assert [one.levelno for one in created] == [logging.DEBUG]
    assert "study" not in capsys.readouterr().err.replace("petkit.merging.study", "")
    assert (list(logger.handlers), logger.propagate) == before


def test_a_missing_optuna_is_named_with_its_extra(monkeypatch):
    check_optuna()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingError, match=r'needs optuna: pip install "petkit\[tune\]"'):
        check_optuna()
