"""Rows of JSONL files and their faults."""

import logging

import pytest

from petkit.data.jsonl import read_rows
from petkit.errors import InputError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1, "a": 2}', r"rows\.jsonl:3: the key 'a' comes twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' comes twice"),
        ("[1]", "expected a JSON object, got list"),
        ('{"a": ', r"rows\.jsonl:3: Expecting value"),
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


def test_files_that_are_not_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        read_rows(path, dict)


def test_line_separators_inside_strings_do_not_split_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "one\u2028two"}\r\n', encoding="utf-8", newline="")
    assert read_rows(path, dict) == [{"a": "one\u2028two"}]
