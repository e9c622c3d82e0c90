"""Thresholds by a sample and a range are those that sorting finds, whatever the numbers."""

import math

import numpy as np
import pytest
import torch

from petkit.merging import sampling, selection
from petkit.merging import slices as slices_module
from petkit.merging.selection import by_counts, kth_magnitudes, thresholds
from petkit.merging.slices import Buffers, Reading, Slices
from petkit.merging.sources import StateDict
from tests.ops.merge_cases import name_of
from tests.threads import threads

DTYPES = (torch.float32, torch.bfloat16)
COUNT = 150_000


@pytest.fixture(params=["held", "read"])
def is_held(request, monkeypatch):
    """Whether all pieces stay in memory, or tensors are sampled by short reads and read again."""
    monkeypatch.setattr(slices_module, "PIECE", 1 << (17 if request.param == "held" else 14))
    # As dense as that of a large tensor.
    monkeypatch.setattr(sampling, "SPACING", 1 << 10)
    return request.param == "held"


@pytest.fixture
def ways(monkeypatch):
    """What `kth_magnitudes` used: the passes that it made."""
    used = []

    def noting(name):
        real = getattr(selection, name)

        def noted(*arguments):
            found = real(*arguments)
            used.append((name, found is not None))
            return found

        monkeypatch.setattr(selection, name, noted)

    noting("by_sample")
    noting("by_counts")
    return used


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensor_of(base, models, name="w"):
    """A tensor in several models, in memory."""

    def reading(numbers):
        return Reading(StateDict("model", {name: numbers}), name)

    readings = [reading(one) for one in models]
    return Slices(name, tuple(base.shape), readings, reading(base), base.dtype, Buffers())


def family(dtype, deltas):
    """A base and models that differ from it about so much."""
    base = (0.02 * normal(deltas.shape[1], seed=9)).to(dtype)
    return base, (base.float() + deltas).to(dtype)


def sorted_magnitudes(base, models):
    with np.errstate(invalid="ignore"):
        return np.sort(np.abs(models.float().numpy() - base.float().numpy()), axis=1)


def check(base, models, ranks):
    expected = [row[rank - 1] for row, rank in zip(sorted_magnitudes(base, models), ranks, strict=True)]
    found = kth_magnitudes([tensor_of(base, models)], torch.tensor(ranks))
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy(), np.array(expected, np.float64))
    return found


def shares_of(count):
    return sorted({1, 2, count // 1000, count // 10, count // 2, count * 9 // 10, count - 1, count})


def gaussian(n, count):
    return 0.002 * normal(n, count)


def constant(n, count):
    return torch.full((n, count), 0.25)


def mostly_zero(n, count):
    return gaussian(n, count) * (torch.rand(n, count, generator=torch.Generator().manual_seed(5)) > 0.99)


def half_zero(n, count):
    return gaussian(n, count) * (normal(n, count, seed=3) > 0)


def heavy_tailed(n, count):
    return 0.001 * normal(n, count) / normal(n, count, seed=4).abs().clamp_min(1e-6)


def one_row_larger(n, count):
    deltas = gaussian(n, count)
    deltas[:, count // 2 : count // 2 + 1000] *= 1000
    return deltas


def growing(n, count):
    return gaussian(n, count) * torch.linspace(0.1, 10, count)


def striped(n, count):
    return gaussian(n, count) * (1 + 50 * (torch.arange(count) % 1024 < 64))


def few_values(n, count):
    return (normal(n, count) * 3).round() * 0.125


def not_finite(n, count):
    deltas = gaussian(n, count)
    deltas[:, ::7] = torch.nan
    deltas[0, 1::5] = torch.inf
    return deltas


KINDS = (
    gaussian, constant, mostly_zero, half_zero, heavy_tailed, one_row_larger, growing, striped, few_values,
    not_finite,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("deltas", KINDS, ids=lambda one: one.__name__)
def test_any_rank_of_any_numbers(is_held, deltas, dtype):
    base, models = family(dtype, deltas(2, COUNT))
    tensor = tensor_of(base, models)
    for rank in shares_of(COUNT):
        ranks = [rank, COUNT + 1 - rank]
        found = check(base, models, ranks)
        counted = by_counts(lambda: tensor, torch.tensor(ranks))
        np.testing.assert_array_equal(found.numpy(), counted.numpy())


@pytest.mark.parametrize("count", [1, 2, 513, 1 << 16, (1 << 16) + 1, 100_003])
def test_any_size(is_held, count):
    base, models = family(torch.bfloat16, gaussian(2, count))
    for rank in (1, count // 2 + 1, count):
        check(base, models, [rank, count + 1 - rank])


@pytest.mark.parametrize(
    "deltas", [gaussian, mostly_zero, half_zero, heavy_tailed, one_row_larger, growing, few_values, constant]
)
def test_one_pass_is_enough(is_held, ways, deltas):
    base, models = family(torch.bfloat16, deltas(2, COUNT))
    for density in (0.05, 0.5, 0.9):
        thresholds([tensor_of(base, models)], [density, density])
    assert ways == [("by_sample", True)] * 3


def test_what_a_sample_misses_is_counted(is_held, ways, monkeypatch):
    base, models = family(torch.float32, gaussian(1, COUNT))
    wrong = sampling.Bracket(0.003, 0.004, 0.01)
    monkeypatch.setattr(selection, "bracket", lambda *_: wrong)
    check(base, models, [COUNT // 2])
    check(base, models, [COUNT])
    assert ways == [("by_sample", False), ("by_counts", True)] * 2


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_more_than_may_be_held_is_counted(is_held, ways, monkeypatch, share):
    monkeypatch.setattr(selection, "LIMIT", 100_000)
    monkeypatch.setattr(selection, "bracket", lambda *_: sampling.Bracket(0.0, math.inf, share))
    base, models = family(torch.float32, gaussian(1, COUNT))
    check(base, models, [COUNT // 2])
    assert ways == [("by_sample", False), ("by_counts", True)]


def test_nan_come_last(is_held, ways):
    deltas = gaussian(2, COUNT)
    deltas[0, ::2] = torch.nan
    base, models = family(torch.float32, deltas)
    assert check(base, models, [COUNT // 2, COUNT // 2]).isfinite().all()
    assert check(base, models, [COUNT, COUNT // 2]).isnan().tolist() == [True, False]
    assert [one for one, _ in ways] == ["by_sample", "by_sample", "by_counts"]


def test_tensors_are_taken_together(ways, monkeypatch):
    monkeypatch.setattr(slices_module, "PIECE", 1 << 16)
    monkeypatch.setattr(sampling, "SPACING", 1 << 10)
    # Small ones, and large ones that differ in how far they moved.
    families = [
        family(torch.bfloat16, scale * normal(3, count, seed=count))
        for count, scale in ((40, 1.0), (200_000, 0.001), (700, 3.0), (90_001, 0.01), (513, 0.1))
    ]
    tensors = [tensor_of(base, models, f"w{i}") for i, (base, models) in enumerate(families)]
    whole = torch.cat([base for base, _ in families]), torch.cat([models for _, models in families], 1)
    sizes = sorted_magnitudes(*whole)
    for density in (0.1, 0.5, 0.999):
        found = thresholds(tensors, [density, 0.3, 1.0])
        ranks = [len(whole[0]) + 1 - math.floor(share * len(whole[0])) for share in (density, 0.3)]
        expected = [*(float(row[rank - 1]) for row, rank in zip(sizes, ranks, strict=False)), 0.0]
        assert found.tolist() == expected
    assert ways == [("by_sample", True)] * 3


def test_many_small_tensors_are_counted(ways):
    families = [family(torch.float32, normal(2, 500, seed=i)) for i in range(150)]
    tensors = [tensor_of(*one) for one in families]
    found = kth_magnitudes(tensors, torch.tensor([700, 70_000]))
    sizes = np.sort(np.concatenate([sorted_magnitudes(*one) for one in families], 1))
    assert found.tolist() == [sizes[0, 699], sizes[1, 69_999]]
    assert ways == [("by_sample", False), ("by_counts", True)]


def test_threads_change_nothing(is_held):
    base, models = family(torch.bfloat16, heavy_tailed(3, COUNT))
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(thresholds([tensor_of(base, models)], [0.2, 0.5, 0.8]))
    assert torch.equal(*found)


@pytest.fixture
def reads(monkeypatch):
    """How many numbers each reading of a model took."""
    found = []

    def read(self, name, start, out):
        found.append(len(out))
        out.copy_(self.tensors[name][start : start + len(out)])

    monkeypatch.setattr(StateDict, "read", read)
    return found


def test_shares_that_keep_all_or_nothing_read_nothing(reads):
    tensor = tensor_of(*family(torch.float32, gaussian(3, 1000)))
    assert thresholds([tensor], [0.0, 1.0, 0.0005]).tolist() == [math.inf, 0.0, math.inf]
    assert not reads


@pytest.mark.parametrize("count", [1 << 18, 1 << 19])
def test_what_stays_in_memory_is_read_once(monkeypatch, reads, count):
    monkeypatch.setattr(slices_module, "PIECE", 1 << 17)
    monkeypatch.setattr(sampling, "SPACING", 1 << 10)
    tensor = tensor_of(*family(torch.bfloat16, gaussian(1, count)))
    thresholds([tensor], [0.5])
    # As the merge does.
    list(tensor)
    # Otherwise a sample, one pass for the threshold and one for the merge.
    sampled = count // sampling.SPACING * sampling.READ_RUN
    assert sum(reads) == 2 * (count if tensor.is_held else 2 * count + sampled)
