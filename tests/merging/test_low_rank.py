"""Products of two matrices: read in pieces, side by side, nearest of a rank; against NumPy in float64."""

import numpy as np
import pytest
import torch

from petkit.merging import low_rank
from petkit.merging.low_rank import (
    Pair,
    Part,
    Product,
    distance,
    nearest_of_rank,
    norm,
    of_rank,
    side_by_side,
)


def matrices(seed, out=5, inputs=7, rank=3):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rank, inputs, generator=source), torch.randn(out, rank, generator=source)


@pytest.mark.parametrize("block", [1, 10, 1 << 18])
@pytest.mark.parametrize(("start", "count"), [(0, 35), (0, 1), (3, 20), (34, 1), (7, 7), (13, 22)])
def test_numbers_of_a_product_are_those_of_the_flat_matrix(monkeypatch, block, start, count):
    monkeypatch.setattr(low_rank, "BLOCK", block)
    down, up = matrices(0)
    product = Product(up.double(), down.double())
    assert product.shape == (5, 7)
    whole = (up.double().numpy() @ down.double().numpy()).ravel()
    found = np.full(count, np.nan)
    for place, numbers in product.numbers(start, count):
        found[place : place + len(numbers)] = numbers
    np.testing.assert_allclose(found, whole[start : start + count], rtol=1e-13)


def test_one_part_of_weight_1_stays_as_it_is():
    down, up = matrices(0)
    found = side_by_side([Part(down, up, 1 / 3)])
    assert torch.equal(found.down, down)
    assert torch.equal(found.up, up)
    assert found.scale == 1 / 3


def test_parts_of_one_scale_keep_it():
    one, other = matrices(0), matrices(1, rank=2)
    found = side_by_side([Part(*one, 0.1, 2.0), Part(*other, 0.1, -1.0)])
    assert found.scale == 0.1
    assert torch.equal(found.up, torch.cat([2 * one[1], -other[1]], 1))


def test_parts_of_other_scales_hold_them():
    one, other = matrices(0), matrices(1, rank=2)
    found = side_by_side([Part(*one, 0.5, 2.0), Part(*other, 2.0, 3.0)])
    assert found.scale == 1
    assert torch.equal(found.up, torch.cat([one[1], 6 * other[1]], 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [1, 2])
def test_what_is_lost_is_the_bound_of_eckart_and_young(seed, rank):
    down, up = matrices(seed)
    product = up.double().numpy() @ down.double().numpy()
    bound = np.sqrt((np.linalg.svd(product)[1][rank:] ** 2).sum())
    for near_down, near_up, lost in (of_rank(down, up, rank), nearest_of_rank(torch.tensor(product), rank)):
        assert (near_down.shape, near_up.shape) == ((rank, 7), (5, rank))
        assert lost == pytest.approx(bound)
        found = near_up.double().numpy() @ near_down.double().numpy()
        assert np.linalg.norm(product - found) == pytest.approx(bound, rel=1e-5)


def test_the_nearest_of_nothing_is_nothing():
    down, up, lost = of_rank(torch.zeros(3, 4), torch.zeros(5, 3), 2)
    assert (lost, down.abs().sum(), up.abs().sum()) == (0.0, 0.0, 0.0)


def test_norms_and_distances():
    one, other = Pair(*matrices(0), 0.5), Pair(*matrices(1, rank=2), 2.0)
    products = [pair.scale * pair.up.double().numpy() @ pair.down.double().numpy() for pair in (one, other)]
    assert norm(one) == pytest.approx(np.linalg.norm(products[0]))
    assert distance(one, other) == pytest.approx(np.linalg.norm(products[0] - products[1]))
    assert distance(one, one) < 1e-12
