"""Values change in place; everything else of the text stays."""

import pytest

from petkit.configuration import edit_yaml
from petkit.errors import ConfigError

TEXT = "# head\noutput: runs/x  # where\ninner:\n  rate: 1e-3\n  names:\n    - a\n  last: 1\n"


def test_changes_keep_comments_and_order():
    assert edit_yaml(TEXT, {"output": "runs/y", "inner.rate": "5e-4"}) == (
        "# head\noutput: runs/y  # where\ninner:\n  rate: 5e-4\n  names:\n    - a\n  last: 1\n"
    )


def test_new_keys_go_into_their_section():
    edited = edit_yaml(TEXT, {"inner.bits": "1", "seed": "3"})
    assert edited == TEXT.replace("inner:\n", "inner:\n  bits: 1\n") + "seed: 3\n"


def test_nothing_to_change():
    assert edit_yaml(TEXT, {}) == TEXT


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"inner.names": "[b]"}, "must hold a value on one line"), ({"other.x": "1"}, "has no section other")],
)
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=message):
        edit_yaml(TEXT, changes)
