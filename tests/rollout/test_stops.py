import pytest

from petkit.rollout.stops import Stops


def spoken(tokens):
    """Every id is a character; 0 stands for a special token, without text."""
    return "".join(chr(token) for token in tokens if token)


@pytest.mark.parametrize(
    ("texts", "written", "expected"),
    [
        (("\nQ:",), "4\nQ: and", 4),
        (("zz", "nd"), "4\nQ: and", 8),
        (("and so on",), "4\nQ: and", None),
        (("4",), "4\nQ: and", 1),
        (("Q:",), "4\nQ\0\0: and", 6),
        ((), "4\nQ: and", None),
    ],
)
def test_the_token_that_completes_a_text_ends_the_answer(texts, written, expected):
    stops, tokens = Stops(texts, spoken), [ord(sign) for sign in written]
    found = [count for count in range(1, len(tokens) + 1) if stops.complete(tokens[:count])]
    assert (found or [None])[0] == expected


def test_no_more_is_decoded_than_a_text_can_lie_in():
    longest = []

    def decode(tokens):
        longest.append(len(tokens))
        return spoken(tokens)

    assert not Stops(("\nQ:",), decode).complete([ord("a")] * 10_000)
    assert longest == [7]


def test_an_answer_is_cut_before_the_first_text():
    stops = Stops(("Q:", "\n"), spoken)
    assert [stops.cut(text) for text in ("4\nQ: a", "4 Q: \n", "4", "")] == ["4", "4 ", "4", ""]
