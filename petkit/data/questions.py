"""Questions whose answers can be checked: JSONL rows of question, answer, choices, dataset and id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from petkit.data.jsonl import placed_rows

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KEYS = {"id", "question", "answer", "choices", "dataset"}

AnswerKind = Literal["number", "choice", "yes_no", "text"]


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        id: names it in results.
        text: the question alone.
        choices: possible answers, named A, B, C, ... in this order; empty for an open question.
        answer: the right one: a letter when there are choices; None when it is not known.
        dataset: the set it is from.
    """

    id: str
    text: str
    choices: tuple[str, ...] = ()
    answer: str | None = None
    dataset: str = ""

    @property
    def kind(self) -> AnswerKind:
        """How an answer is compared."""
        if self.choices:
            return "choice"
        if self.answer is not None and self.answer.strip().lower() in ("yes", "no"):
            return "yes_no"
        return "number" if self.answer is not None and as_number(self.answer) is not None else "text"

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the question" if self.id == "question" else f"question {self.id}"

    def prompt(self) -> str:
        """The question with its choices, one a line."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
        return "\n".join([self.text, *lines])


def read_questions(path: Path, skip_bad: bool = False, labelled: bool = False) -> list[Question]:
    """Read a JSONL file of questions.

    Args:
        path: the file; its name stands in for a missing `dataset`, its line numbers for missing ids.
        skip_bad: leave faulty lines out, each named in the log.
        labelled: refuse questions without an answer.

    Returns:
        The questions in the order of the file.

    Raises:
        InputError: the file cannot be read, or lines are faulty; the message names them.
    """

    def parse(row: dict[str, Any]) -> Question:
        return parse_question(row, labelled)

    found = []
    for place, question in placed_rows(path, parse, skip_bad):
        line = place.rpartition(":")[2]
        found.append(
            Question(
                question.id or line,
                question.text,
                question.choices,
                question.answer,
                question.dataset or path.stem,
            )
        )
    return found


def parse_question(row: dict[str, Any], labelled: bool = False) -> Question:
    """Check one row.

    Args:
        row: `question`, and perhaps the other keys; a number may stand for a string.
        labelled: demand an answer.

    Returns:
        The question; id and dataset are empty where the row has none.

    Raises:
        ValueError: a key is missing, unknown, empty or of another type.
    """
    unknown = sorted(set(row) - KEYS)
    if unknown:
        raise ValueError(f"a question has the keys {', '.join(sorted(KEYS))}, got {', '.join(unknown)} too")
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"question must be a text that is not empty, got {text!r:.60}")
    choices = _choices(row.get("choices"))
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float, type(None))):
        raise ValueError(f"answer must be a text or a number, got {answer!r:.60}")
    answer = None if answer is None else str(answer).strip()
    if labelled and not answer:
        raise ValueError("answer must be given: this is for labelled questions")
    if choices and answer is not None:
        answer = _letter(answer, choices)
    return Question(
        "" if row.get("id") is None else str(row["id"]), text, choices, answer, str(row.get("dataset") or "")
    )


def as_number(text: str) -> float | None:
    """The number that a text is, thousands separated by commas or not; None if it is none."""
    try:
        value = float(text.strip().replace(",", "").removeprefix("$").removesuffix("%"))
    except ValueError:
        return None
    return value if abs(value) != float("inf") and value == value else None


def _choices(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"choices must be a list of 2 to {len(LETTERS)} answers, got {value!r:.60}")
    return tuple(str(choice) for choice in value)


def _letter(answer: str, choices: tuple[str, ...]) -> str:
    """The letter of the right choice, which may be given as letter, position from 0, or text."""
    if answer in choices:
        return LETTERS[choices.index(answer)]
    if answer.isdecimal() and int(answer) < len(choices):
        return LETTERS[int(answer)]
    if len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return answer.upper()
    raise ValueError(f"answer must be one of the choices, its letter or its position, got {answer!r:.60}")
