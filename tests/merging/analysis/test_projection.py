"""The projection keeps cosines, and knows nothing of pieces and threads."""

import numpy as np
import pytest
import torch

from petkit.errors import ConfigError
from petkit.merging.analysis.footprint import CHUNK, Room, shifts_of
from petkit.merging.analysis.projection import Projection, projected_cosine
from tests.reference import shifts as reference


def projected(models, base, projection, tensor="w", eta=0.0):
    n = len(models)
    total, room = torch.zeros(projection.dimensions, n, n, dtype=torch.float64), Room(n)
    for chunk, start in enumerate(range(0, len(base), CHUNK)):
        part = slice(start, start + CHUNK)
        projection.add(total, shifts_of(models[:, part], base[part], eta, room), tensor, chunk, room)
    return total


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.3, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_cosines_are_preserved(correlation, seed):
    source = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 150_000, generator=source)
    y = correlation * x + (1 - correlation**2) ** 0.5 * y
    projection = Projection(256, seed)
    found = projected_cosine(projected(torch.stack([x, y]), torch.zeros(150_000), projection), 0, 1)
    assert found == pytest.approx(reference.angle(x.double().numpy(), y.double().numpy()), abs=4 / 16)
    assert projection.standard_deviation == 1 / 16


def test_the_spread_is_that_of_johnson_and_lindenstrauss():
    source = torch.Generator().manual_seed(0)
    models = torch.randn(2, 5000, generator=source)
    # A few columns with most of the length, as the outliers of language models have it.
    models[:, ::500] *= 30
    exact = reference.angle(*models.double().numpy())
    found = [
        projected_cosine(projected(models, torch.zeros(5000), Projection(256, seed)), 0, 1) - exact
        for seed in range(60)
    ]
    # 60 draws know a standard deviation to a tenth; ten outliers alone leave it below the bound.
    assert np.sqrt(np.mean(np.square(found))) < 1.4 / 16
    assert abs(np.mean(found)) < 4 / 16 / np.sqrt(60)


def test_rows_of_the_projection_are_orthogonal():
    projection = Projection(64, 3)
    counts = torch.bincount(projection.order, minlength=CHUNK)
    # Every number is in one dimension, and all dimensions are as large.
    assert torch.equal(counts, torch.ones(CHUNK, dtype=torch.int64))
    signs = projection.signs("w", 0)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / CHUNK**0.5
    assert sorted(projection.targets("w", 0).tolist()) == list(range(64))


def test_squares_are_those_of_the_shift_on_average():
    source = torch.Generator().manual_seed(1)
    models = torch.randn(2, 3000, generator=source)
    found = [projected(models, torch.zeros(3000), Projection(256, seed))[:, 0, 0] for seed in range(40)]
    squares = np.array([float(one @ one) for one in found])
    assert squares.mean() == pytest.approx(float(models[0].double().square().sum()), rel=0.06)


def test_only_what_both_changed_is_projected():
    models = torch.tensor([[1.0, 1.0, 0.0, 5.0], [2.0, -1.0, 3.0, 0.0]])
    total = projected(models, torch.zeros(4), Projection(4096, 0))
    # So few numbers meet in no dimension, and lengths stay what they are.
    assert float(total[:, 0, 1].square().sum()) == 2.0
    assert float(total[:, 1, 0].square().sum()) == 5.0
    assert projected_cosine(total, 0, 1) == pytest.approx(1 / 10**0.5)
    assert projected_cosine(total, 0, 0) == 1.0


def test_tensors_seeds_and_chunks_have_signs_of_their_own():
    projection = Projection(256, 0)
    first = projection.signs("w", 0)
    assert torch.equal(first, Projection(256, 0).signs("w", 0))
    for other in (projection.signs("v", 0), projection.signs("w", 1), Projection(256, 1).signs("w", 0)):
        assert abs(float((first * other).mean())) < 4 / CHUNK**0.5


@pytest.mark.parametrize("dimensions", [0, 8, 100, 8192])
def test_dimensions_that_are_none(dimensions):
    with pytest.raises(ConfigError, match=f"power of 2 from 16 to 4096, got {dimensions}"):
        Projection(dimensions)
