"""What the writer writes, the reader reads back."""

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from petkit.configuration import dump_yaml
from petkit.configuration.reader import parse_yaml

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
    st.sampled_from(
        ["no", "1e-4", "0x10", "~", "null", "2024-01-01", "1:30", "- a", "a: b", "# c", "", " x "]
    ),
)
KEYS = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1)
DATA = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_size=4,
)


@given(DATA)
def test_round_trip(data):
    assert parse_yaml(dump_yaml(data), Path("x.yaml")).data == data


def test_a_yaml_1_1_reader_agrees_about_text():
    data = {"a": "no", "b": "on", "c": "12:30:45", "d": "2024-01-01", "e": "1_000", "f": "010"}
    assert yaml.safe_load(dump_yaml(data)) == data


def test_sequences_and_order():
    assert dump_yaml({"z": (1, 2), "a": {"y": 1e-4}}) == "z:\n- 1\n- 2\na:\n  y: 0.0001\n"
    same = ["x"]
    assert "&" not in dump_yaml({"a": same, "b": same})
