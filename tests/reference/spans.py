"""Spans of tags by the definition of conlleval, one candidate at a time; and their F1."""

from __future__ import annotations

from collections.abc import Sequence


def starts(tags: Sequence[str], at: int) -> bool:
    """Whether a chunk starts at a word: by its tag and the one before it alone."""
    if tags[at] == "O":
        return False
    if at == 0 or tags[at - 1] == "O" or tags[at][0] in "BUS" or tags[at - 1][0] in "LEUS":
        return True
    return tags[at - 1][1:] != tags[at][1:]


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Every (start, end, type) that is a chunk, of all that could be one."""
    found = set()
    for start in range(len(tags)):
        for end in range(start + 1, len(tags) + 1):
            inside = all(tags[at] != "O" and not starts(tags, at) for at in range(start + 1, end))
            ended = end == len(tags) or tags[end] == "O" or starts(tags, end)
            if starts(tags, start) and inside and ended:
                found.add((start, end, tags[start][2:]))
    return found


def scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> tuple[float, float, float]:
    """Micro precision, recall and F1."""
    true = {(row, *span) for row, tags in enumerate(gold) for span in spans(tags)}
    found = {(row, *span) for row, tags in enumerate(predicted) for span in spans(tags)}
    correct = len(true & found)
    precision = correct / len(found) if found else 0.0
    recall = correct / len(true) if true else 0.0
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0
