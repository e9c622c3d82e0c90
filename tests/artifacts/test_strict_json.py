import pytest

from petkit.artifacts.strict_json import parse_json


def test_plain_values_are_read():
    assert parse_json('{"a": [1, -2.5e3, null, true, "é"], "b": {"a": 1}}'.encode()) == {
        "a": [1, -2500.0, None, True, "é"],
        "b": {"a": 1},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 1}', "duplicate key 'a'"),
        (b'[{"b": {"c": 1, "d": 2, "c": 3}}]', "duplicate key 'c'"),
        (b"[NaN]", "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[1e999]", "1e999 is too large for a number"),
        (b"\xff", "utf-8"),
        (b"[1", "Expecting"),
        (b"9" * 5000, "limit"),
    ],
)
def test_what_is_no_json_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
