"""Rows of JSONL files and their faults."""

import logging

import pytest

from petkit.data.jsonl import convert, placed_rows, read_rows
from petkit.errors import InputError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1, "a": 2}', r"rows\.jsonl:3: the key 'a' comes twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' comes twice"),
        ("[1]", "expected a JSON object, got list"),
        ('{"a": ', r"rows\.jsonl:3: is not JSON: Expecting value at column 7"),
        (
            r'{"a": "x\ud800"}',
            r"rows\.jsonl:3: a must hold whole characters, got the half \\ud800 of a surrogate pair: ",
        ),
        (r'{"a": [{"b": "\uDC00\ud83e"}]}', r"got the half \\udc00"),
        (r'{"\ud800": 1}', r"rows\.jsonl:3: \\ud800 must hold whole characters"),
        ("[" * 100_000, r"rows\.jsonl:3"),
    ],
)
def test_faults_name_file_and_line(tmp_path, line, message, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n\n{line}\n{{"a": 2}}')
    with pytest.raises(InputError, match=message):
        read_rows(path, dict)
    with caplog.at_level(logging.WARNING):
        assert read_rows(path, dict, skip_bad=True) == [{"a": 1}, {"a": 2}]
    assert "rows.jsonl:3" in caplog.text
    assert "1 of 3 lines are faulty and left out" in caplog.text


def test_files_that_are_not_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        read_rows(path, dict)


def test_line_separators_inside_strings_do_not_split_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "one\u2028two"}\r\n', encoding="utf-8", newline="")
    assert read_rows(path, dict) == [{"a": "one\u2028two"}]


def test_whole_pairs_are_characters(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"a": "\ud83e\udd16", "b": "\\ud800"}')
    assert read_rows(path, dict) == [{"a": "\U0001f916", "b": "\\ud800"}]


def test_every_faulty_line_is_named_at_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n[]\n{"a": 2}\n[]\n')
    with pytest.raises(InputError) as caught:
        read_rows(path, dict)
    assert str(caught.value).splitlines() == [
        f"{path}:2: expected a JSON object, got list",
        f"{path}:4: expected a JSON object, got list",
        "repair the 2 lines or set data.skip_bad",
    ]


def test_one_faulty_line_is_one_line_of_message(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("[]\n")
    with pytest.raises(InputError) as caught:
        read_rows(path, dict)
    assert (
        str(caught.value)
        == f"{path}:1: expected a JSON object, got list; repair the line or set data.skip_bad"
    )


@pytest.mark.parametrize(("count", "last"), [(20, "repair the 20"), (23, "and 3 more; repair the 23")])
def test_faults_beyond_the_twentieth_are_counted(tmp_path, count, last):
    path = tmp_path / "rows.jsonl"
    path.write_text("[]\n" * count)
    with pytest.raises(InputError) as caught:
        read_rows(path, dict)
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines[:-1]] == [f"{path}:{n}" for n in range(1, 21)]
    assert lines[-1] == f"{last} lines or set data.skip_bad"


def test_rows_that_are_worked_on_further_keep_their_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 2}\n\n{"a": 0}\n')
    rows = placed_rows(path, lambda row: row["a"])
    assert rows == [(f"{path}:1", 2), (f"{path}:3", 0)]

    def half(number):
        if number == 0:
            raise ValueError("must be positive,\ngot 0")
        return number // 2

    assert convert(rows, half, skip_bad=True) == [(f"{path}:1", 1)]
    with pytest.raises(InputError, match=r"rows\.jsonl:3: must be positive, got 0; repair the line"):
        convert(rows, half)
