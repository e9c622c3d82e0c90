"""Fewer examples of a split: the same ones for the same seed, in the order of the file."""

import pytest

from petkit.errors import InputError
from petkit.training.subset import seeded_subset


def test_a_subset_keeps_the_files_order():
    rows = list(range(100))
    found = seeded_subset(rows, 10, 3, "train_size", "rows")
    assert found == sorted(found) == seeded_subset(rows, 10, 3, "train_size", "rows")
    assert len(set(found)) == 10
    assert found != seeded_subset(rows, 10, 4, "train_size", "rows")
    assert found != seeded_subset(rows, 10, 3, "test_size", "rows")


def test_all_of_them():
    assert seeded_subset("abc", None, 0, "train_size", "rows") == ["a", "b", "c"]
    assert seeded_subset("abc", 3, 0, "train_size", "rows") == ["a", "b", "c"]


def test_more_than_there_are():
    with pytest.raises(InputError, match=r"data.test_size must be at most 3, the rows there are, got 4"):
        seeded_subset("abc", 4, 0, "test_size", "rows")
