"""Divergences with their errors, and the rule of neighbours."""

import numpy as np
import pytest

from petkit.merging.analysis.neighbourhood import (
    Cell,
    Divergence,
    Response,
    estimate,
    neighbours,
    own_experts,
)


def test_by_hand():
    found = estimate([Response(0, 2, 1.0), Response(1, 4, 5.0)])
    assert found.per_sequence == Divergence(3.0, 2.0)
    assert found.per_token.estimate == 1.0
    # Residuals -1 and 1 have a standard error of 1, over a mean length of 3.
    assert found.per_token.standard_error == pytest.approx(1 / 3)
    assert (found.prompts, found.responses, found.tokens) == (2, 2, 6)


def test_one_prompt_says_nothing_of_the_error():
    found = estimate([Response(0, 2, 1.0), Response(0, 2, 3.0)])
    assert found.per_sequence == Divergence(2.0, None)
    assert found.per_token == Divergence(1.0, None)
    assert estimate([]) is None


def test_responses_to_one_prompt_count_as_one():
    once = estimate([Response(i, 3, float(i)) for i in range(5)])
    thrice = estimate([Response(i, 3, float(i)) for i in range(5) for _ in range(3)])
    for unit in ("per_sequence", "per_token"):
        assert getattr(thrice, unit).estimate == pytest.approx(getattr(once, unit).estimate)
        assert getattr(thrice, unit).standard_error == pytest.approx(getattr(once, unit).standard_error)


def test_errors_are_those_of_repeated_experiments():
    drawing = np.random.default_rng(0)
    found = []
    for _ in range(300):
        lengths = drawing.integers(5, 40, 50)
        found.append(
            estimate([Response(i, int(n), float(drawing.normal(0.1 * n, 1))) for i, n in enumerate(lengths)])
        )
    for unit, truth in (("per_sequence", 2.2), ("per_token", 0.1)):
        values = np.array([getattr(one, unit).estimate for one in found])
        errors = np.array([getattr(one, unit).standard_error for one in found])
        assert values.mean() == pytest.approx(truth, abs=4 * values.std() / 300**0.5)
        assert errors.mean() == pytest.approx(values.std(), rel=0.15)


def cell(value, error=0.01):
    both = Divergence(value, error)
    return Cell(both, both, 10, 10, 100)


def test_the_rule():
    cells = {
        ("maths", "maths"): cell(0.20),
        ("code", "maths"): cell(0.05),
        ("chat", "maths"): cell(0.22),
        ("law", "maths"): cell(0.90),
        ("none", "maths"): None,
        ("one", "maths"): cell(0.01, None),
        ("maths", "poems"): cell(0.1),
    }
    found = neighbours(cells, {"maths": "maths"}, "per_token")
    assert {one["expert"]: one["verdict"] for one in found} == {
        "code": "neighbour",
        "chat": "unclear",
        "law": "not",
        "one": "unclear",
    }
    code = found[0]
    assert (code["threshold"], code["divergence"]) == (0.2, 0.05)
    assert code["margin"] == pytest.approx(0.15)
    assert code["standard_error"] == pytest.approx(0.01 * 2**0.5)


def test_experts_of_domains():
    found = own_experts(["Maths", "prose", "law"], ["maths", "code"], {"prose": "code"})
    assert found == {"Maths": "maths", "prose": "code"}
