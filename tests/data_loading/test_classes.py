from __future__ import annotations

import pytest

from petkit.data.classes import MOST_CLASSES, class_names
from petkit.errors import InputError


def test_gaps_between_numbers_count() -> None:
    assert class_names({"train": ["3", "0"]}, True, False) == ("0", "1", "2", "3")


def test_one_wrong_number_asks_for_no_huge_head() -> None:
    labels = {"train": ["0", str(MOST_CLASSES)]}
    with pytest.raises(InputError, match="must count from 0 and stay below 1,000,000, got 1000000: correct"):
        class_names(labels, True, False)
    assert class_names(labels, False, False) == ("0", str(MOST_CLASSES))
