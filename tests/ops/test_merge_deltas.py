import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import _library, _merge, merge_deltas
from petkit.ops.merge_deltas import Terms
from tests.ops.merge_cases import (
    DTYPES,
    SIZES,
    assert_same,
    default,
    family,
    name_of,
    normal,
    weights_of,
)
from tests.reference import merge
from tests.reference.tolerance import sum_error
from tests.threads import threads

CONSENSUS = ("none", "sum", "count")
# Least, largest, kept share: everything, trimmed from either side, thinned, all at once, nothing at all.
TRIMMINGS = [
    (0.0, torch.inf, 1.0),
    (0.1, torch.inf, 1.0),
    (0.0, 0.4, 1.0),
    (0.0, torch.inf, 0.3),
    (0.1, 0.5, 0.9),
    (0.0, torch.inf, 0.0),
]


def terms_of(n, low=0.0, high=torch.inf, keep=1.0, weights=None, keys=None):
    def full(value):
        return torch.full((n,), value, dtype=torch.float64)

    chosen = weights_of(n) if weights is None else torch.tensor(weights, dtype=torch.float64)
    if keys is None:
        keys = torch.randint(-(2**63), 2**63 - 1, (n,), generator=torch.Generator().manual_seed(n))
    return Terms(chosen, full(low), full(high), full(keep), keys)


def reference(base, models, terms, start, consensus, normalize, factor):
    numbers = [part.float().double().numpy() for part in terms[:4]]
    keep, count = numbers[3], models.shape[1]
    uniforms = np.zeros(tuple(models.shape))
    for row, key in enumerate(terms.keys.tolist()):
        if keep[row] < 1:
            uniforms[row] = merge.uniform(key, start, count)
    # The difference itself is a float32.
    origin = base.double().numpy()
    exact = origin + (models.float() - base.float()).double().numpy()
    parts = merge.weighted(origin, exact, *numbers[:3], uniforms, keep)
    return merge.merged(origin, parts, numbers[0], consensus, normalize, factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("trimming", TRIMMINGS)
@pytest.mark.parametrize("consensus", CONSENSUS)
@pytest.mark.parametrize("normalize", [False, True])
def test_matches_the_reference_and_the_default(kernels, normalize, consensus, trimming, dtype):
    for n, count in zip(
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 3), (0, 1, 7, 16, 63, 65, 257, 513, 700, 4097), strict=True
    ):
        base, models = family(n, count, dtype)
        terms = terms_of(n, *trimming)
        got = merge_deltas(base, models, terms, start=5, consensus=consensus, normalize=normalize, factor=0.7)
        expected, magnitude = reference(base, models, terms, 5, consensus, normalize, 0.7)
        assert got.dtype == dtype
        assert sum_error(got.double().numpy(), expected, magnitude, name_of(dtype)) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("consensus", CONSENSUS)
@pytest.mark.parametrize("kernels", _library.available_kernels()[:-1], indirect=True)
def test_equals_the_default_to_the_bit(kernels, consensus, count, dtype):
    for n, result in zip((1, 2, 3, 9), (*DTYPES, dtype), strict=True):
        base, models = family(n, count, dtype)
        models[:, count // 2 :: 100] = torch.nan
        models[n - 1, count // 3 :: 90] = torch.inf
        base[count // 4 :: 80] = -torch.inf
        for trimming in TRIMMINGS[:: 1 if count < 10_000 else 2]:
            for normalize in (False, True):
                arguments = (base, models, *terms_of(n, *trimming), 77, consensus, normalize, -1.3, result)
                assert_same(torch.ops.petkit.merge_deltas(*arguments), default("merge_deltas", *arguments))


def test_by_hand(kernels):
    base = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    models = torch.tensor([[3.0, 2.0, 0.0, 1.0, 2.0], [2.0, 0.5, 0.0, 1.0, 0.0], [0.5, 0.5, 5.0, 1.0, 1.0]])
    terms = terms_of(3, weights=[1, 1, 1])

    def merged(**options):
        return merge_deltas(base, models, terms, **options).tolist()

    # Differences: (2, 1, -1/2), (1, -1/2, -1/2), (-1, -1, 4), none, (1, -1, 0): the last vote is a tie.
    assert merged() == [3.5, 1.0, 3.0, 1.0, 1.0]
    assert merged(consensus="sum") == [4.0, 2.0, 5.0, 1.0, 2.0]
    assert merged(consensus="sum", normalize=True) == [2.5, 2.0, 5.0, 1.0, 2.0]
    assert merged(consensus="count") == [4.0, 0.0, -1.0, 1.0, 2.0]
    assert merged(consensus="count", normalize=True, factor=2.0) == [4.0, 0.0, -1.0, 1.0, 3.0]
    assert merge_deltas(base, models, terms_of(3, low=1.0, high=2.0, weights=[1, 1, 1])).tolist() == [
        4.0,
        2.0,
        -1.0,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_one_model_of_weight_1_is_the_model(kernels, dtype):
    base, models = family(1, 5000, dtype)
    got = merge_deltas(base, models, terms_of(1, weights=[1]), dtype=torch.float32)
    # The difference and the sum are rounded once each.
    bound = 2**-23 * torch.maximum(base.abs().float(), models[0].abs().float())
    assert ((got - models[0].float()).abs() <= bound).all()
    # In half precision the difference and the sum of float32 are exact for all but the widest gaps.
    if dtype != torch.float32:
        assert torch.equal(got.to(dtype), models[0])


@pytest.mark.parametrize("consensus", CONSENSUS)
def test_models_that_are_the_base_leave_it(kernels, consensus):
    base = normal(1000, dtype=torch.bfloat16)
    got = merge_deltas(base, base.expand(3, -1), terms_of(3), consensus=consensus, normalize=True)
    assert torch.equal(got, base)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("trimming", [*TRIMMINGS, (torch.inf, 0.0, 0.0)])
@pytest.mark.parametrize("consensus", CONSENSUS)
def test_nan_always_shows(kernels, consensus, trimming, dtype):
    base, models = family(4, 333, dtype)
    base[9] = models[0, 50] = models[2, 51] = models[3, 332] = torch.nan
    for normalize in (False, True):
        got = merge_deltas(base, models, terms_of(4, *trimming), consensus=consensus, normalize=normalize)
        assert got.isnan().nonzero()[:, 0].tolist() == [9, 50, 51, 332]


def test_an_infinite_difference_that_is_outvoted_is_left_out(kernels):
    base, models = torch.zeros(2), torch.tensor([[1.0, 1.0], [1.0, 1.0], [-torch.inf, torch.inf]])
    got = merge_deltas(base, models, terms_of(3, weights=[1, 1, 1]), consensus="count")
    assert got.tolist() == [2.0, torch.inf]


def test_a_divisor_near_zero_counts_as_1(kernels):
    base, models = torch.zeros(3), torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    terms = terms_of(2, weights=[1, -1])
    assert merge_deltas(base, models, terms, normalize=True).tolist() == [-1.0, 0.0, 1.0]


# What a term of each model may be is one of its own.
def test_every_model_has_its_own_terms(kernels):
    base, models = family(3, 900, torch.float32)
    parts = [
        Terms(*(part[i : i + 1] for part in terms_of(3, low, high, keep)))
        for i, (low, high, keep) in enumerate([(0.1, 0.5, 1.0), (0.0, torch.inf, 0.4), (0.2, 9.0, 0.7)])
    ]
    terms = Terms(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    alone = [merge_deltas(base, models[i : i + 1], part, start=3) - base for i, part in enumerate(parts)]
    got = merge_deltas(base, models, terms, start=3) - base
    # Three differences of sums, each rounded to float32 at about 3.
    assert torch.allclose(got, sum(alone), rtol=0, atol=2e-6)


class TestThinning:
    """Random numbers of (key, place)."""

    def test_uniform_numbers_are_those_of_the_reference(self):
        for key, start in ((0, 0), (-1, 7), (2**63 + 5, 2**40), (123456789, 0)):
            got = _merge.uniform(key, start, 100).double().numpy()
            np.testing.assert_array_equal(got, merge.uniform(key, start, 100))

    def test_the_reference_is_the_published_generator(self):
        # The first numbers of seed 0.
        assert [merge.random_bits(0, i) for i in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]

    @pytest.mark.parametrize("keep", [0.05, 0.3, 0.9])
    def test_the_expectation_is_the_difference(self, kernels, keep):
        count = 200_000
        got = merge_deltas(torch.zeros(count), torch.ones(1, count), terms_of(1, keep=keep, weights=[1]))
        kept = (got != 0).double().mean().item()
        # Five standard deviations of a share of so many.
        assert kept == pytest.approx(keep, abs=5 * (keep * (1 - keep) / count) ** 0.5)
        assert torch.equal(got[got != 0], torch.full_like(got[got != 0], (torch.ones(1) / keep).item()))

    def test_the_share_is_exact_at_the_bound(self, kernels):
        # Kept are the numbers below keep, and not keep itself.
        numbers = merge.uniform(42, 0, 64)
        for number in numbers[:8]:
            terms = terms_of(1, keep=float(number), weights=[1], keys=torch.tensor([42]))
            got = merge_deltas(torch.zeros(64), torch.ones(1, 64), terms)
            assert np.array_equal(got.numpy() != 0, numbers < number)

    @pytest.mark.parametrize("cut", [1, 63, 4096, 5000, 70000])
    def test_slices_give_what_the_whole_gives(self, kernels, cut):
        base, models = family(3, 70001, torch.bfloat16)
        terms = terms_of(3, 0.05, 0.6, 0.5)
        options = {"consensus": "sum", "normalize": True}
        whole = merge_deltas(base, models, terms, start=2**33, **options)
        parts = [
            merge_deltas(base[:cut], models[:, :cut], terms, start=2**33, **options),
            merge_deltas(base[cut:], models[:, cut:], terms, start=2**33 + cut, **options),
        ]
        assert_same(torch.cat(parts), whole)

    def test_keys_differ(self, kernels):
        models = torch.ones(1, 1000)
        masks = [
            merge_deltas(torch.zeros(1000), models, terms_of(1, keep=0.5, keys=torch.tensor([key]))) != 0
            for key in (1, 2, 1)
        ]
        assert torch.equal(masks[0], masks[2])
        # About half of the places agree by chance, with a standard deviation of 16.
        assert 400 < int((masks[0] == masks[1]).sum()) < 600


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_rows_that_lie_apart_or_out_of_order(kernels, dtype):
    base, wide = family(3, 1000, dtype)
    for row, models in (
        (base[33:700], wide[:, 33:700]),
        (base[::3], wide[:, ::3]),
        (base[:700].view(7, 100).T[0], wide[:, :700].view(3, 7, 100)[..., 0]),
    ):
        terms = terms_of(len(models), 0.1, 0.6, 0.5)
        got = merge_deltas(row, models, terms, consensus="sum")
        assert_same(got, merge_deltas(row.clone(), models.clone(), terms, consensus="sum"))


@pytest.mark.parametrize("consensus", CONSENSUS)
def test_threads_change_nothing(kernels, consensus):
    base, models = family(3, 300_001, torch.bfloat16)
    terms = terms_of(3, 0.05, 0.6, 0.5)
    with threads(2):
        two = merge_deltas(base, models, terms, consensus=consensus, normalize=True)
    with threads(1):
        assert_same(merge_deltas(base, models, terms, consensus=consensus, normalize=True), two)


@pytest.mark.parametrize("consensus", CONSENSUS)
def test_opcheck(kernels, consensus):
    base, models = family(3, 21, torch.float16)
    arguments = (base, models, *terms_of(3, 0.1, 0.6, 0.5), 4, consensus, True, 0.5, torch.bfloat16)
    torch.library.opcheck(torch.ops.petkit.merge_deltas.default, arguments)


def changed(**fields):
    return terms_of(2)._replace(**fields)


@pytest.mark.parametrize(
    ("base", "terms", "options", "message"),
    [
        (normal(4), changed(), {}, r"base must be torch.float32 \(3,\) on cpu .* got torch.float32 \(4,\)"),
        (normal(3).half(), changed(), {}, r"base must be torch.float32 \(3,\) on cpu .* got torch.float16"),
        ([1.0], changed(), {}, "base must be a tensor, got list"),
        (
            normal(3),
            changed(low=torch.zeros(2)),
            {},
            r"low must be float64 \(2,\) on the CPU, got torch.float32",
        ),
        (normal(3), changed(keep=0.5), {}, "keep must be a tensor, got float"),
        (
            normal(3),
            changed(keys=torch.zeros(2)),
            {},
            r"keys must be int64 \(2,\) on the CPU, got torch.float32",
        ),
        (normal(3), changed(keys=torch.zeros(3).long()), {}, r"keys must be int64 \(2,\) .* \(3,\)"),
        (
            normal(3),
            changed(),
            {"consensus": "mean"},
            "consensus must be one of none, sum, count, got 'mean'",
        ),
        (normal(3), changed(), {"start": -1}, "start must be an integer of at least 0, got -1"),
        (normal(3), changed(), {"start": 0.5}, "start must be an integer of at least 0, got 0.5"),
        (normal(3), changed(), {"dtype": torch.int8}, "dtype must be float32, bfloat16 or float16"),
        (
            normal(3),
            terms_of(2)._replace(keep=torch.tensor([0.5, 1.5]).double()),
            {},
            "keep must lie between 0 and 1, got 1.5",
        ),
        (normal(3), terms_of(2)._replace(keep=torch.tensor([torch.nan, 1]).double()), {}, "keep .* got nan"),
    ],
)
def test_refusals(base, terms, options, message):
    with pytest.raises(InputError, match=message):
        merge_deltas(base, normal(2, 3), terms, **options)


def test_the_operator_itself_refuses_what_would_read_out_of_bounds():
    if not torch._C._dispatch_has_kernel_for_dispatch_key("petkit::merge_deltas", "CPU"):
        pytest.skip("the default has torch's own bounds checks")

    def call(base, terms, consensus="none"):
        torch.ops.petkit.merge_deltas(base, normal(2, 3), *terms, 0, consensus, False, 1.0, torch.float32)

    with pytest.raises(RuntimeError, match="base must hold 3 numbers, got 2"):
        call(normal(2), terms_of(2))
    with pytest.raises(RuntimeError, match="base must be Float, got BFloat16"):
        call(normal(3, dtype=torch.bfloat16), terms_of(2))
    with pytest.raises(RuntimeError, match="high must hold 2 numbers, got 1"):
        call(normal(3), terms_of(2)._replace(high=torch.zeros(1, dtype=torch.float64)))
    with pytest.raises(RuntimeError, match="keys must be Long, got Int"):
        call(normal(3), terms_of(2)._replace(keys=torch.zeros(2, dtype=torch.int32)))
    with pytest.raises(RuntimeError, match="consensus must be none, sum or count, got most"):
        call(normal(3), terms_of(2), "most")


numbers = st.floats(-8, 8, width=16)
columns = st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=9)


@given(columns, st.sampled_from(CONSENSUS[1:]))
def test_a_normalized_consensus_of_equal_weights_lies_among_its_models(rows, consensus):
    models = torch.tensor(rows)
    terms = terms_of(len(models), weights=[1.0] * len(models))
    merged = merge_deltas(torch.zeros(4), models, terms, consensus=consensus, normalize=True)
    # The mean of those that agree, up to the rounding of a sum of nine.
    assert (merged <= models.amax(0).clamp_min(0) + 1e-5).all()
    assert (merged >= models.amin(0).clamp_max(0) - 1e-5).all()


@given(columns)
def test_the_order_of_models_does_not_matter_to_the_vote(rows):
    models = torch.tensor(rows)
    forth = terms_of(len(models), weights=[1.0] * len(models))
    merged = [
        merge_deltas(torch.zeros(4), each, forth, consensus="count", normalize=True)
        for each in (models, models.flip(0))
    ]
    assert torch.allclose(*merged, rtol=1e-5, atol=1e-6)
