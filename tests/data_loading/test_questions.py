import json

import pytest

from petkit.data.questions import Question, parse_question, read_questions
from petkit.errors import InputError


def test_rows_become_questions(tmp_path):
    path = tmp_path / "arithmetic.jsonl"
    rows = [
        {"question": "1 + 1?", "answer": 2},
        {"id": "x", "question": "Which?", "choices": ["a", "b"], "answer": "b", "dataset": "d"},
        {"question": "Why?"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_questions(path) == [
        Question("1", "1 + 1?", answer="2", dataset="arithmetic"),
        Question("x", "Which?", ("a", "b"), "B", "d"),
        Question("3", "Why?", dataset="arithmetic"),
    ]
    with pytest.raises(InputError, match=r"arithmetic\.jsonl:3: answer must be given"):
        read_questions(path, labelled=True)
    assert len(read_questions(path, labelled=True, skip_bad=True)) == 2


def test_kinds_and_prompts():
    assert [parse_question({"question": "?", "answer": a}).kind for a in ("1,000", "Yes", "Paris", None)] == [
        "number", "yes_no", "text", "text",
    ]  # fmt: skip
    choice = parse_question({"question": "Which?", "choices": ["x", "y"], "answer": 0})
    assert (choice.kind, choice.answer, choice.prompt()) == ("choice", "A", "Which?\nA. x\nB. y")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "question must be a text that is not empty, got None"),
        ({"question": "  "}, "not empty"),
        ({"question": "?", "anwser": 1}, "got anwser too"),
        ({"question": "?", "choices": ["a"]}, "2 to 26 answers"),
        ({"question": "?", "choices": ["a", "b"], "answer": "c"}, "one of the choices, its letter"),
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, "one of the choices"),
    ],
)
def test_faulty_rows(row, message):
    with pytest.raises(ValueError, match=message):
        parse_question(row)


@pytest.mark.parametrize("answer", [["x"], {"a": 1}, True, False, []])
def test_an_answer_is_a_text_or_a_number(answer):
    with pytest.raises(ValueError, match="answer must be a text or a number, got "):
        parse_question({"question": "q", "answer": answer})
    for given, wanted in ((7, "7"), (1.5, "1.5"), (" x ", "x"), (None, None)):
        assert parse_question({"question": "q", "answer": given}).answer == wanted
