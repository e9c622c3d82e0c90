import pytest

from petkit.data.questions import Question
from petkit.rollout.verifiers import MAX_TEXT, extract, score

NUMBER = Question("n", "How many?", answer="1,200")
CHOICE = Question("c", "Which?", ("red", "light blue", "green"), "B")
YES_NO = Question("y", "Is it?", answer="No")
TEXT = Question("t", "Who?", answer="Ada Lovelace")


@pytest.mark.parametrize(
    ("question", "text", "expected"),
    [
        (NUMBER, "1200", 1),
        (NUMBER, "3 boxes of 400 make 1,200.0 apples.", 1),
        (NUMBER, "The answer is $1200. It took 3 steps.", 1),
        (NUMBER, "#### 1200", 1),
        (NUMBER, r"so \boxed{1200} as 7 said", 1),
        (NUMBER, "answer: 1200 or 1300", 1),
        (NUMBER, "1200 is wrong, it is 7", 0),
        (NUMBER, "none", 0),
        (NUMBER, "x1200y", 0),
        (CHOICE, "B", 1),
        (CHOICE, "b)", 1),
        (CHOICE, "(B) light blue", 1),
        (CHOICE, "The answer is B.", 1),
        (CHOICE, "A colour. The answer is (B), not C.", 1),
        (CHOICE, "Not A). I think B.", 1),
        (CHOICE, "It is light blue", 1),
        (CHOICE, "It is red or light blue", 0),
        (CHOICE, "A thing I cannot tell", 0),
        (CHOICE, "C", 0),
        (YES_NO, "No, never.", 1),
        (YES_NO, "Some say yes. The answer is no", 1),
        (YES_NO, "False", 1),
        (YES_NO, "Nothing is known", 0),
        (YES_NO, "Yes", 0),
        (TEXT, "I recall:\nada lovelace.\n", 1),
        (TEXT, "", 0),
    ],
)
def test_answers_are_found(question, text, expected):
    assert score(question, text) == expected


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match="question q has no answer"):
        score(Question("q", "Why?"), "because")


def test_endless_texts_are_cut():
    assert extract(NUMBER, "7 " + "a" * MAX_TEXT) is None
    assert score(NUMBER, "(" * 10**6 + " 1200") == 1
