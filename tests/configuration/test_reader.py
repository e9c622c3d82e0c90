"""The YAML reader: YAML 1.2 scalars, lines, and bounded input."""

import math
from pathlib import Path

import pytest

from petkit.configuration import load_yaml, parse_value
from petkit.configuration.reader import MAX_BYTES, parse_yaml
from petkit.errors import ConfigError, InputError


def read(text):
    return parse_yaml(text, Path("recipe.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("+12", 12),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("-.inf", -math.inf),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("TRUE", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("[a, 1e-3, {b: null}]", ["a", 1e-3, {"b": None}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse_value(text, "--set x")
    assert found == value
    assert type(found) is type(value)


def test_not_a_number():
    assert math.isnan(parse_value(".nan", "x"))


def test_lines_of_every_key():
    loaded = read("# head\na: 1\nb:\n  c: [x,\n    y]\n  d:\n  - 1\n")
    assert loaded.data == {"a": 1, "b": {"c": ["x", "y"], "d": [1]}}
    assert {key: loaded.lines[key] for key in ("a", "b", "b.c", "b.c.1", "b.d.0")} == {
        "a": 2,
        "b": 3,
        "b.c": 4,
        "b.c.1": 5,
        "b.d.0": 7,
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_is_an_empty_mapping(text):
    assert read(text).data == {}


def test_an_alias_repeats_its_anchor():
    assert read("a: &x {b: 1}\nc: *x\n").data == {"a": {"b": 1}, "c": {"b": 1}}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"duplicate key a \(recipe.yaml:1 and 2\); keep one"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", r"duplicate key a.b \(recipe.yaml:2 and 4\)"),
        ("a: 1\nb: 1\nb: 2\na: 2\n", r"duplicate key b .*\nduplicate key a"),
        ("- a\n- b\n", "must hold a mapping of keys to values, got list"),
        ("just text", "must hold a mapping of keys to values, got str"),
        ("1: a\n", "recipe.yaml:1 a key must be text, got '1'; quote it"),
        ("[a]: b\n", "recipe.yaml:1 a key must be text"),
        ("a: !!python/object/apply:os.system ['true']\n", "recipe.yaml:1 has the tag .*plain data only"),
        ("a: !custom 1\n", "recipe.yaml:1 has the tag '!custom'"),
        ("a: !!int x\n", "recipe.yaml:1 must be a int, got 'x'"),
        ("a: !!bool maybe\n", "recipe.yaml:1 must be a bool, got 'maybe'"),
        ("a: !!set {b, c}\n", "recipe.yaml:1 has the tag"),
        ("a: [1\nb: 2\n", "recipe.yaml:2 is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2 is not valid YAML"),
        ("a: \x07\n", "recipe.yaml is not valid YAML"),
        ("a: *nowhere\n", "recipe.yaml:1 is not valid YAML"),
        ("a: " + "[" * 40 + "]" * 40, "at most 50000 values in 32 levels"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 32 levels|at most 50000 values"),
        ("a: &a [*a]\n", "at most 50000 values in 32 levels"),
        (BOMB, "at most 50000 values"),
        ("a: " + "9" * 5000, "recipe.yaml:1 must be a int"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_yaml(tmp_path / "no.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_yaml(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(InputError, match="must be at most 1048576 bytes, got 1048577"):
        load_yaml(large)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml must be UTF-8 text; byte 6 is not"):
        load_yaml(latin)


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    file = tmp_path / "bom.yaml"
    file.write_bytes("﻿a: ü\n".encode())
    assert load_yaml(file).data == {"a": "ü"}
