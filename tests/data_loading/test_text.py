"""Labelled texts."""

import logging

import pytest

from petkit.data.text import LabelledText, encode_texts, parse_text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a", "label": "good"}, LabelledText("a", "good", False)),
        ({"text": "a", "label": 3, "id": 7}, LabelledText("a", "3", True)),
    ],
)
def test_rows(row, expected):
    assert parse_text(row) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 0}, "text must be a string that is not empty, got None"),
        ({"text": " ", "label": 0}, "text must be"),
        ({"text": "a"}, "label must be a class name or a number of 0 or more, got None"),
        ({"text": "a", "label": -1}, "got -1"),
        ({"text": "a", "label": True}, "got True"),
        ({"text": "a", "label": 0.5}, r"got 0\.5"),
    ],
)
def test_faulty_rows(row, message):
    with pytest.raises(ValueError, match=message):
        parse_text(row)


def test_long_texts_are_cut_and_counted(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        encoded = encode_texts(["abcdef", "ab", "abcd"], tokenizer, 4)
    assert [tokenizer.decode(ids) for ids in encoded] == ["abcd", "ab", "abcd"]
    assert "1 of 3 texts are longer than 4 tokens" in caplog.text
