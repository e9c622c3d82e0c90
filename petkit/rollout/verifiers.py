"""Whether what a model wrote holds the right answer: numbers, letters of choices, yes or no, or a text."""

from __future__ import annotations

import re

from petkit.data.questions import LETTERS, Question, as_number

NUMBER = re.compile(r"(?<![\w.])[-+]?\$?\d[\d,]*(?:\.\d+)?%?(?!\w)")
# Where models put what they end up with.
MARKERS = re.compile(r"(?:\\boxed\{|####|(?:final\s+)?answer(?:\s+is)?\s*[:=]?)", re.IGNORECASE)
YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
# Longer texts are cut before they are searched.
MAX_TEXT = 100_000


def score(question: Question, text: str) -> float:
    """Compare a written answer with the right one.

    Args:
        question: with its answer.
        text: what the model wrote.

    Returns:
        1.0 when the answer found in the text is right, else 0.0.

    Raises:
        ValueError: the question has no answer.
    """
    if question.answer is None:
        raise ValueError(f"{question.name} has no answer to compare with")
    found = extract(question, text)
    if found is None:
        return 0.0
    if question.kind == "number":
        wanted, got = as_number(question.answer), as_number(found)
        same = wanted is not None and got is not None and abs(wanted - got) <= 1e-6 * max(1.0, abs(wanted))
        return float(same)
    return float(found.lower() == question.answer.strip().lower())


def extract(question: Question, text: str) -> str | None:
    """Find the answer in what a model wrote.

    Args:
        question: says what kind of answer is looked for.
        text: searched behind the last mark such as "answer is", "####" or a box, and then as a whole.

    Returns:
        A number, a letter, yes or no, or the last line that is not empty; None when there is none.
    """
    text = text[-MAX_TEXT:].strip()
    marks = list(MARKERS.finditer(text))
    parts = [text[marks[-1].end() :], text] if marks else [text]
    for position, part in enumerate(parts):
        behind_mark = bool(marks) and position == 0
        found = _find(question, part, first=behind_mark)
        if found is not None:
            return found
    return None


def _find(question: Question, text: str, first: bool) -> str | None:
    if question.kind == "number":
        return _pick([match.group().strip("$%") for match in NUMBER.finditer(text)], first)
    if question.kind == "choice":
        return _choice(question, text, first)
    if question.kind == "yes_no":
        words = [match.group().lower() for match in YES_NO.finditer(text)]
        found = _pick(words, first)
        return {"true": "yes", "false": "no"}.get(found or "", found)
    lines = [line.strip(" .*") for line in text.splitlines() if line.strip(" .*")]
    return _pick(lines, first)


def _choice(question: Question, text: str, first: bool) -> str | None:
    known = LETTERS[: len(question.choices)]
    # "A" alone is an article as often as a choice, so a letter counts at the start or with a mark beside it.
    lone = re.match(rf"\W*([{known}{known.lower()}])(?:[).:,]|\s*$|\s*\n)", text)
    if lone:
        return lone.group(1).upper()
    marked = re.findall(rf"(?:\(([{known}])\)|\b([{known}])[).:]|\b([B-{known[-1]}])\b)", text)
    letters = ["".join(groups) for groups in marked]
    if letters:
        return _pick(letters, first)
    named = [letter for letter, choice in zip(known, question.choices, strict=True) if _holds(text, choice)]
    return named[0] if len(named) == 1 else None


def _holds(text: str, choice: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(choice.strip().lower())}(?!\w)", text.lower()) is not None


def _pick(found: list[str], first: bool) -> str | None:
    return None if not found else found[0] if first else found[-1]
