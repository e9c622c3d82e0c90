import math
from typing import Any

import pytest
import torch
from torch import nn

from petkit.errors import InputError
from petkit.training.evaluate import StepOutput, evaluate, to_device, wilson_interval


def exact_wilson(correct: int, n: int) -> tuple[float, float]:
    """The roots of |p - q| = z sqrt(q (1 - q) / n), by bisection: the definition, not the closed form."""
    z, p = 1.959963984540054, correct / n

    def outside(q: float) -> bool:
        return abs(p - q) > z * math.sqrt(q * (1 - q) / n)

    def edge(out: float, inside: float) -> float:
        for _ in range(80):
            middle = (out + inside) / 2
            out, inside = (middle, inside) if outside(middle) else (out, middle)
        return inside

    return edge(0.0, p) if correct else 0.0, edge(1.0, p) if correct < n else 1.0


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (1, 10), (81, 263), (711, 1000)]
)
def test_the_interval_solves_its_definition(correct: int, n: int) -> None:
    low, high = wilson_interval(correct, n)
    expected = exact_wilson(correct, n)
    # A root of a square root next to 0 or 1 is found to about the square root of the float's precision.
    assert (low, high) == pytest.approx(expected, abs=1e-7)
    assert 0 <= low <= correct / n <= high <= 1


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_no_proportion_is_refused(correct: int, n: int) -> None:
    with pytest.raises(InputError):
        wilson_interval(correct, n)


def test_the_sums_equal_one_pass_over_everything(toy: Any) -> None:
    model, data = toy.make_model(dropout=0.5), toy.points(31)
    model.train()
    result = evaluate(model, data, toy.classify, batch_size=7, classes=("a", "b", "c", "unseen"))
    assert model.training
    model.eval()
    logits = model(data.inputs)
    right = logits.argmax(-1) == data.labels
    assert result.n == 31
    assert result.accuracy == pytest.approx(right.double().mean().item())
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, data.labels).item(), rel=1e-6)
    assert result.interval == wilson_interval(int(right.sum()), 31)
    assert result.per_class == {
        "a": right[data.labels == 0].double().mean().item(),
        "b": right[data.labels == 1].double().mean().item(),
        "c": right[data.labels == 2].double().mean().item(),
        "unseen": None,
    }
    assert result.score == result.accuracy
    assert result.perplexity is None
    assert result.payload()["unit"] == "examples"


def test_tokens_give_a_perplexity(toy: Any) -> None:
    def tokens(model: nn.Module, batch: Any) -> StepOutput:
        return StepOutput(torch.tensor(2.0 * len(batch[1])), 4 * len(batch[1]))

    result = evaluate(toy.make_model(), toy.points(5), tokens, batch_size=2)
    assert (result.n, result.loss, result.accuracy) == (20, 0.5, None)
    assert result.perplexity == pytest.approx(math.exp(0.5))
    assert result.score == -0.5
    assert result.payload() == {
        "unit": "tokens",
        "perplexity": result.perplexity,
        "n": 20,
        "loss": 0.5,
        "examples_per_second": result.examples_per_second,
    }


def test_an_empty_split_is_an_error(toy: Any) -> None:
    with pytest.raises(InputError, match="at least one example"):
        evaluate(toy.make_model(), toy.points(0), toy.classify)


def test_a_split_without_targets_is_an_error(toy: Any) -> None:
    with pytest.raises(InputError, match="at least one target"):
        evaluate(toy.make_model(), toy.points(3), lambda model, batch: StepOutput(torch.tensor(0.0), 0))


def test_the_mode_comes_back_after_an_error(toy: Any) -> None:
    model = toy.make_model().train()
    with pytest.raises(ZeroDivisionError):
        evaluate(model, toy.points(3), lambda model, batch: 1 / 0)
    assert model.training


def test_batches_of_any_shape_move() -> None:
    batch = {"a": [torch.ones(1), (torch.zeros(2), "name")], "b": 3}
    moved = to_device(batch, torch.device("cpu"))
    assert moved["b"] == 3
    assert moved["a"][1][1] == "name"
