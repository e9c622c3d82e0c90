import pytest

from petkit.configuration.messages import shown, shown_apart

LONG = "Answer the question with care and take every sentence of it for true, however odd: {question}"


def test_values_are_cut():
    assert shown("a" * 58) == f"'{'a' * 58}'"
    assert shown("a" * 59) == f"'{'a' * 56}..."
    assert (shown(None), shown(True), shown(3)) == ("null", "true", "3")


@pytest.mark.parametrize(
    ("one", "other", "texts"),
    [
        ("{question}", "{question} ", ("'{question}'", "'{question} '")),
        (None, LONG, ("null", f"'{LONG[:56]}...")),
        (f"{LONG} End.", f"{LONG} Stop.", ("...ver odd: {question} End.'", "...ver odd: {question} Stop.'")),
        (LONG, f"{LONG}\n", ("...ever odd: {question}'", "...ever odd: {question}\\n'")),
        (["x" * 70, "a"], ["x" * 70, "b"], (f"...{'x' * 16}', 'a']", f"...{'x' * 16}', 'b']")),
    ],
)
def test_two_values_are_shown_where_they_part(one, other, texts):
    assert shown_apart(one, other) == texts


def test_quotes_hide_no_difference():
    own, given = shown_apart(f"{LONG} a", f"{LONG} it's")
    assert own.endswith(" a'")
    assert given.endswith(""" it's\"""")
