import numpy as np
import pytest
from PIL import Image

from petkit.errors import InputError
from petkit.report.search import _weightiest, search_curve


def tried(count, failing=()):
    source = np.random.default_rng(0)
    for number in range(count):
        values = {name: float(source.uniform()) for name in ("a", "b", "c", "d")}
        score = (
            None if number in failing else -10 * (values["b"] - 0.4) ** 2 - values["d"] + 0.1 * values["a"]
        )
        yield {"parameters": values, "score": score}


@pytest.mark.parametrize(("failing", "maximize"), [((), True), ((0, 3), False), (tuple(range(1, 12)), True)])
def test_a_search_is_drawn(tmp_path, failing, maximize):
    path = search_curve(list(tried(12, failing)), maximize, tmp_path / "curve.png")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5


def test_the_numbers_that_matter_come_first():
    trials = list(tried(40))
    scores = np.array([one["score"] for one in trials])
    values = [one["parameters"] for one in trials]
    assert _weightiest(values, scores)[:2] == ["b", "d"]
    assert _weightiest(values, np.ones(40)) == []
    assert _weightiest(values[:4], scores[:4]) == []


def test_nothing_but_failures_is_refused(tmp_path):
    with pytest.raises(InputError, match="trials with a score"):
        search_curve(list(tried(3, (0, 1, 2))), True, tmp_path / "x.png")
