"""Whatever the bytes, reading ends with an artifact or with one of petkit's errors."""

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petkit.artifacts import read_artifact, read_packed
from petkit.artifacts.reader import MANIFEST, TENSORS
from petkit.errors import PetkitError
from tests.artifacts.support import edit_tensors, write_small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("fuzz") / "a")


@pytest.fixture(scope="module")
def sound(folder):
    return {name: (folder / name).read_bytes() for name in (TENSORS, MANIFEST)}


def splice(raw, edits):
    damaged = bytearray(raw)
    for place, cut, insert in edits:
        start = place % (len(damaged) + 1)
        damaged[start : start + cut] = insert
    return bytes(damaged)


places = st.integers(0, 10_000)
edits = st.lists(st.tuples(places, st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=4)
# What turns one number of the header into another, or breaks the JSON around it.
tokens = st.sampled_from([b"0", b"9" * 30, b"-", b"}", b'"', b"[[", b"e9"])
numbers = st.lists(st.tuples(places, st.integers(0, 2), tokens), min_size=1, max_size=3)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(edits, numbers), st.sampled_from([TENSORS, MANIFEST]))
def test_damaged_bytes(folder, sound, edits, name):
    for file, raw in sound.items():
        (folder / file).write_bytes(splice(raw, edits) if file == name else raw)
    if name == TENSORS:
        # With the right hash in the manifest, nothing but the checks of the content stands in the way.
        edit_tensors(folder, lambda raw: raw)
    for read in (read_packed, read_artifact):
        with suppress(PetkitError):
            read(folder)
