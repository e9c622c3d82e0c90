"""Results, logs and progress."""

import json
import logging
import re

import pytest

from petkit.cli import output


@pytest.fixture(autouse=True)
def restored_logger():
    logger = logging.getLogger("petkit")
    before = logger.level, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


def test_json_replaces_what_json_cannot_hold(capsys):
    payload = {"a": float("nan"), "b": [float("inf"), 1.5], "c": ("x", None, True), "d": {1: set()}}
    output.print_result("text", payload, as_json=True)
    expected = {"schema_version": 1, "a": None, "b": [None, 1.5], "c": ["x", None, True], "d": {"1": []}}
    assert json.loads(capsys.readouterr().out) == expected


def test_a_table_is_not_cut_off_a_terminal(capsys):
    long = "word " * 60
    output.print_result(output.table(("name", "number"), [(long.strip(), 3), ("b", 12)]), {}, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith(long.strip())
    assert lines[3].endswith("12")


def test_lines_off_a_terminal_have_no_trailing_blanks(capsys):
    rows = [("a", "long text"), ("b", "x"), ("c", "")]
    output.print_result(output.table(("one", "two"), rows), {}, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line == line.rstrip() for line in lines)


def test_a_table_prints_square_brackets_as_they_are(capsys):
    output.print_result(output.table(("x",), [("[bold]a[/bold]",)]), {}, as_json=False)
    assert "[bold]a[/bold]" in capsys.readouterr().out


def test_numbers_of_a_table_are_written_alike(capsys):
    rows = [(11380.4, 5063, 0.53125, True), (1.5e-7, 1_000_000, 2.0, False)]
    output.print_result(output.table(("a", "b", "c", "d"), rows), {}, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [["11,380", "5,063", "0.5312", "True"], ["1.5e-07", "1,000,000", "2", "False"]]


def test_a_rate_has_no_exponent(capsys, monkeypatch):
    output.configure_logging()
    clock = iter((0, 1))
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with output.progress("eval", total=1650, unit="examples") as advance:
        advance(1650)
    assert capsys.readouterr().err == "eval 1650/1650 (1,650 examples/s, 0s left)\n"


def test_progress_off_a_terminal_is_lines_with_rate_and_time_left(capsys, monkeypatch):
    output.configure_logging()
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with output.progress("train", total=4, unit="steps") as advance:
        for step in range(4):
            advance(note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train 2/4 (0.167 steps/s, 12s left), loss 1"
    assert lines[-1] == "train 4/4 (0.167 steps/s, 0s left), loss 3"
    assert len(lines) == 2


def test_progress_goes_on_from_what_was_done_before(capsys, monkeypatch):
    output.configure_logging()
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with output.progress("train", total=160, done=158) as advance:
        advance()
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "train 159/160 (0.05 steps/s, 20s left)",
        "train 160/160 (0.05 steps/s, 0s left)",
    ]


def test_progress_of_what_was_done_before_has_no_rate(capsys):
    output.configure_logging()
    with output.progress("train", total=1, done=1) as advance:
        advance(0, note="loss 1")
    assert capsys.readouterr().err.splitlines() == ["train 1/1, loss 1"]


def test_progress_is_silent_when_quiet(capsys):
    output.configure_logging(quiet=True)
    with output.progress("train", total=1) as advance:
        advance()
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    output.configure_logging()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress("train", total=2, unit="images") as advance:
        advance(2, note="loss 0.5")
    text = capsys.readouterr().err
    assert "train" in text
    assert "2/2" in text
    assert "loss 0.5" in text


def test_warnings_show_when_quiet(capsys):
    output.configure_logging(quiet=True)
    output.log("hidden")
    output.warn("shown")
    assert capsys.readouterr().err == "warning: shown\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.4, "59s"), (60, "1m00s"), (200, "3m20s"), (7500, "2h05m")]
)
def test_duration(seconds, text):
    assert output.duration(seconds) == text
    assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", text)


def test_the_end_is_told_once(capsys):
    output.configure_logging()
    with output.progress("every mode", total=4) as advance:
        for count in (3, 0, 1, 0, 0):
            advance(count)
    assert [line.split(" (")[0] for line in capsys.readouterr().err.splitlines()] == ["every mode 4/4"]


def test_notes_are_told_from_errors(capsys):
    output.configure_logging()
    output.log_notes(("one is out", "so is another"))
    assert capsys.readouterr() == ("", "note: one is out\nnote: so is another\n")
    output.configure_logging(quiet=True)
    output.log_notes(["silent"])
    assert capsys.readouterr().err == ""
