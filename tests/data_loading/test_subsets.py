"""Balanced, seeded choices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petkit.data.subsets import balanced_order, choose
from petkit.errors import InputError

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(labels, st.integers(0, 5), st.integers(1, 60))
def test_every_prefix_is_as_balanced_as_it_can_be(values, seed, size):
    order = balanced_order(values, seed)
    assert sorted(order) == list(range(len(values)))
    prefix = [values[index] for index in order[:size]]
    counts = {label: prefix.count(label) for label in set(values)}
    # A class may only lag behind the fullest one by more than one example when it has no more.
    assert all(count >= min(values.count(label), max(counts.values()) - 1) for label, count in counts.items())


@given(labels)
def test_the_seed_decides(values):
    assert balanced_order(values, 3) == balanced_order(values, 3)


def test_seeds_differ():
    assert balanced_order([0] * 50, 0) != balanced_order([0] * 50, 1)


def test_all_are_kept_in_order_without_a_size():
    assert choose([1, 0, 1], None, 0, "data.train_size") == [0, 1, 2]


def test_more_than_there_are_is_refused():
    with pytest.raises(InputError, match=r"data\.train_size asks for 4 examples, but the split has 3"):
        choose([1, 0, 1], 4, 0, "data.train_size")
