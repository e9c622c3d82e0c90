"""CRF as a drop-in: torchcrf is the judge where both are defined, enumeration elsewhere."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
import torchcrf
from hypothesis import given
from hypothesis import strategies as st

from petkit.nn import CRF
from tests.nn.crf_cases import case, close, crf_of, laid_out, with_gradients
from tests.ops.crf_cases import rows
from tests.reference import crf as reference

REDUCTIONS = ("sum", "mean", "token_mean", "none")
SHAPES = [(1, 1, 1), (3, 1, 4), (4, 7, 5), (2, 30, 17), (9, 12, 2)]
LAYOUTS = pytest.mark.parametrize("batch_first", [True, False])


def pair(arguments, batch_first):
    """Both implementations with the same parameters, by their state dicts."""
    theirs = torchcrf.CRF(arguments.emissions.shape[2], batch_first).to(arguments.transitions.dtype)
    theirs.load_state_dict(crf_of(arguments).state_dict(), strict=True)
    ours = CRF(theirs.num_tags, batch_first).to(arguments.transitions.dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def test_a_seed_gives_the_parameters_of_torchcrf():
    torch.manual_seed(7)
    theirs = torchcrf.CRF(6)
    torch.manual_seed(7)
    ours = CRF(6)
    for parameters in (ours.named_parameters, lambda: ours.state_dict().items()):
        for (name, one), (other, two) in zip(parameters(), theirs.named_parameters(), strict=True):
            assert (name, one.dtype) == (other, two.dtype)
            assert torch.equal(one, two)
    assert repr(ours) == repr(theirs)
    torch.manual_seed(8)
    theirs.reset_parameters()
    torch.manual_seed(8)
    ours.reset_parameters()
    assert torch.equal(ours.transitions, theirs.transitions)


@LAYOUTS
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_of_torchcrf(shape, reduction, batch_first):
    arguments, tags = case(*shape)
    ours, theirs = pair(arguments, batch_first)
    emissions, tags, mask = laid_out(batch_first, arguments.emissions, tags, arguments.mask)
    expected = with_gradients(theirs, emissions, tags, mask, reduction)
    for given_mask in (mask, mask.to(torch.uint8), mask.long()):
        found = with_gradients(ours, emissions, tags, given_mask, reduction)
        for one, two in zip(found, expected, strict=True):
            assert one.dtype == torch.float64
            torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@LAYOUTS
def test_without_a_mask(batch_first):
    arguments, tags = case(3, 6, 4)
    ours, theirs = pair(arguments, batch_first)
    emissions, tags = laid_out(batch_first, arguments.emissions, tags)
    everything = torch.ones_like(tags, dtype=torch.bool)
    torch.testing.assert_close(ours(emissions, tags), theirs(emissions, tags, everything))
    assert ours.decode(emissions) == theirs.decode(emissions, everything)


def test_in_float32():
    arguments, tags = case(5, 20, 9, torch.float32)
    ours, theirs = pair(arguments, True)
    found = ours(arguments.emissions, tags, arguments.mask)
    assert found.dtype == torch.float32
    # Scores of some hundreds: a few units of their last digit.
    torch.testing.assert_close(found, theirs(arguments.emissions, tags, arguments.mask), rtol=1e-5, atol=1e-4)


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES)
def test_decodes_like_torchcrf(shape, batch_first):
    arguments, _ = case(*shape)
    ours, theirs = pair(arguments, batch_first)
    emissions, mask = laid_out(batch_first, arguments.emissions, arguments.mask)
    lists = ours.decode(emissions, mask)
    assert lists == theirs.decode(emissions, mask)
    tensor = ours.decode(emissions, mask, as_tensor=True)
    assert tensor.dtype == torch.int64
    assert tensor.shape == mask.shape
    assert torch.equal(tensor == -1, ~mask)
    assert [row[row >= 0].tolist() for row in laid_out(batch_first, tensor)[0]] == lists


def test_ties_have_the_score_of_torchcrf():
    arguments, _ = case(4, 9, 3)
    arguments = arguments._replace(emissions=torch.randint(2, (4, 9, 3)).double())
    for part in arguments[2:]:
        part.zero_()
    ours, theirs = pair(arguments, True)
    both = (crf.decode(arguments.emissions, arguments.mask) for crf in (ours, theirs))
    for one, two, row in zip(*both, rows(arguments), strict=True):
        assert reference.score(tuple(one), *row) == reference.score(tuple(two), *row)


def test_gaps_are_skipped():
    arguments, tags = case(6, 5, 3, gaps=True)
    crf = crf_of(arguments)
    emissions, mask = arguments[:2]
    assert (mask.int().diff(dim=1) > 0).any()
    found = crf(emissions, tags, mask, "none")
    for b, row in enumerate(rows(arguments)):
        path = tuple(tags[b][mask[b]].tolist())
        close(found[b], reference.score(path, *row) - reference.enumerated(*row)["log_z"])
        # The same as the row alone, without its gaps.
        alone = with_gradients(crf, emissions[b : b + 1, mask[b]], tags[b : b + 1, mask[b]])
        together = with_gradients(crf, emissions[b : b + 1], tags[b : b + 1], mask[b : b + 1])
        close(together[1][0, mask[b]], alone[1][0])
        for one, two in zip(together[2:], alone[2:], strict=True):
            close(one, two)


def test_what_is_at_masked_positions_does_not_matter():
    arguments, tags = case(5, 8, 4, gaps=True)
    crf, (emissions, mask) = crf_of(arguments), arguments[:2]
    expected = with_gradients(crf, emissions, tags, mask)
    for junk in (-100, 4, 2**40, -(2**62)):
        spoiled = emissions.masked_fill(~mask[:, :, None], torch.nan)
        for weights in (None, torch.ones(4)):
            arrived = tags.masked_fill(~mask, junk), mask, "sum", weights
            for one, two in zip(with_gradients(crf, spoiled, *arrived), expected, strict=True):
                close(one, two)
    live = spoiled.requires_grad_()
    crf.entropy(live, mask).sum().backward()
    assert live.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_tags_of_any_integer_type(dtype):
    arguments, tags = case(3, 6, 4)
    crf = crf_of(arguments)
    assert torch.equal(crf(arguments.emissions, tags.to(dtype)), crf(arguments.emissions, tags))
    many = CRF(300, batch_first=True)
    assert many(torch.zeros(3, 6, 300), tags.to(dtype)).isfinite()


@pytest.mark.parametrize("forbidden", [-1e4, -torch.inf])
def test_scores_that_forbid(forbidden):
    arguments, tags = case(4, 6, 3)
    arguments.transitions[0, 1] = arguments.transitions[2, 2] = arguments.start[1] = forbidden
    arguments.emissions[1, 2, 0] = forbidden
    crf, (emissions, mask) = crf_of(arguments), arguments[:2]
    tags = crf.decode(emissions, mask, as_tensor=True).clamp_min(0)
    found, of_emissions, *of_parameters = with_gradients(crf, emissions, tags, mask, "none")
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = [reference.enumerated(*row) for row in rows(arguments)]
    for b, row in enumerate(rows(arguments)):
        path = tuple(tags[b][mask[b]].tolist())
        assert reference.score(path, *row) == pytest.approx(float(expected[b]["best"][0]))
        close(found[b], reference.score(path, *row) - expected[b]["log_z"])
        gold = np.eye(3)[list(path)]
        weight = np.linspace(1, 2, 4)[b]
        close(of_emissions[b][mask[b]], (gold - expected[b]["marginals"]) * weight)
    assert all(part.isfinite().all() for part in of_parameters)
    with torch.no_grad():
        close(crf.entropy(emissions, mask), [row["entropy"] for row in expected])
    live = emissions.clone().requires_grad_()
    entropy = crf.entropy(live, mask)
    entropy.sum().backward()
    close(entropy, [row["entropy"] for row in expected])
    assert live.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in crf.parameters())


@LAYOUTS
def test_marginals_paths_samples_and_entropy_of_all_paths(batch_first):
    arguments, _ = case(4, 4, 3, gaps=True)
    crf = crf_of(arguments)
    crf.batch_first = batch_first
    emissions, mask = laid_out(batch_first, arguments.emissions, arguments.mask)
    (marginals,) = laid_out(batch_first, crf.marginals(emissions, mask))
    paths, scores = crf.kbest(emissions, 4, mask)
    assert torch.equal(paths[:, 0], crf.decode(emissions, mask, as_tensor=True))
    paths = paths if batch_first else paths.transpose(0, 2)
    samples = crf.sample(emissions, 5, mask, torch.Generator().manual_seed(1))
    assert samples.shape == (5, *mask.shape)
    for b, row in enumerate(rows(arguments)):
        expected, valid = reference.enumerated(*row), arguments.mask[b]
        close(marginals[b][valid], expected["marginals"])
        assert not marginals[b][~valid].any()
        close(scores[b], (expected["best"].tolist() + [-np.inf] * 4)[:4])
        for path, score in zip(paths[b], scores[b], strict=True):
            if score > -torch.inf:
                close(score, reference.score(tuple(path[valid].tolist()), *row))
        close(crf.log_partition(emissions, mask)[b], expected["log_z"])
        close(crf.entropy(emissions, mask)[b], expected["entropy"])
    assert torch.equal(samples == -1, ~mask.expand_as(samples))


def test_samples_come_as_often_as_they_are_probable():
    arguments, _ = case(1, 3, 2)
    crf, number = crf_of(arguments), 20_000
    samples = crf.sample(arguments.emissions, number, generator=torch.Generator().manual_seed(3))
    every, scores = reference.all_paths(*next(rows(arguments)))
    probabilities = np.exp(scores - reference.logsumexp(scores))
    counts = [int((samples[:, 0] == torch.tensor(path)).all(1).sum()) for path in every]
    # Five standard deviations of a count.
    bound = 5 * np.sqrt(probabilities * (1 - probabilities) * number) + 1
    assert (np.abs(counts - probabilities * number) < bound).all()


def test_entropy_has_first_and_second_derivatives():
    arguments, _ = case(3, 4, 3, gaps=True)
    crf, (emissions, mask, *parameters) = crf_of(arguments), arguments

    def entropy(emissions, *parts):
        names = ("transitions", "start_transitions", "end_transitions")
        return torch.func.functional_call(crf, dict(zip(names, parts, strict=True)), (emissions,))

    crf.forward = lambda emissions: crf.entropy(emissions, mask)
    live = [part.clone().requires_grad_() for part in (emissions, *parameters)]
    torch.autograd.gradcheck(entropy, live)
    torch.autograd.gradgradcheck(entropy, live)


def test_the_entropy_of_long_rows_keeps_its_digits():
    """log Z and the mean score are both near 1e5 here; their difference would lose 0.01 in float32."""
    arguments, _ = case(1, 2000, 4, torch.float32)
    arguments.emissions.add_(50)
    crf, exact = crf_of(arguments), crf_of(arguments).double()
    expected = exact.entropy(arguments.emissions.double()).detach()
    with torch.no_grad():
        fast = crf.entropy(arguments.emissions)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast.double(), expected, rtol=1e-6, atol=0)
    # A float32 sum of 2,000 terms, one after the other.
    torch.testing.assert_close(crf.entropy(arguments.emissions).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_summed_in_float32(dtype):
    arguments, tags = case(3, 40, 6, dtype)
    crf = crf_of(arguments)
    found, gradient, *_ = with_gradients(crf, arguments.emissions, tags, arguments.mask)
    exact, expected, *_ = with_gradients(crf, arguments.emissions.float(), tags, arguments.mask)
    assert found.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-4)
    # Rounded once, and not as the difference of two rounded terms: it may be small.
    torch.testing.assert_close(gradient.float(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)
    assert crf.entropy(arguments.emissions).dtype == torch.float32
    assert crf.marginals(arguments.emissions).dtype == torch.float32


def test_under_autocast():
    arguments, tags = case(3, 12, 6, torch.float32)
    crf, layer = crf_of(arguments), torch.nn.Linear(6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        emissions = layer(arguments.emissions)
        found = [crf(emissions, tags, arguments.mask, "none"), crf.entropy(emissions, arguments.mask)]
        weighted = crf(emissions, tags, arguments.mask, "none", torch.ones(6))
        paths = crf.decode(emissions, arguments.mask)
    assert emissions.dtype == torch.bfloat16
    exact = emissions.float()
    expected = [crf(exact, tags, arguments.mask, "none"), crf.entropy(exact, arguments.mask)]
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(weighted, found[0], rtol=1e-5, atol=1e-4)
    assert paths == crf.decode(exact, arguments.mask)
    (-found[0].sum()).backward()
    assert layer.weight.grad.isfinite().all()


class Call(torch.nn.Module):
    """One method of a CRF as the forward of a module."""

    def __init__(self, crf, what):
        super().__init__()
        self.crf, self.what = crf, what

    def forward(self, emissions, mask, tags):
        if self.what == "decode":
            return self.crf.decode(emissions, mask, as_tensor=True)
        if self.what == "log_partition":
            return self.crf.log_partition(emissions, mask)
        return self.crf(emissions, tags, mask, self.what)


CALLS = ["decode", "log_partition", "sum", "token_mean", "none"]


@LAYOUTS
@pytest.mark.parametrize("what", CALLS)
def test_compile(what, batch_first):
    arguments, tags = case(3, 7, 5, torch.float32, gaps=True)
    crf = crf_of(arguments)
    crf.batch_first = batch_first
    module = Call(crf, what)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    given_now = laid_out(batch_first, arguments.emissions, arguments.mask, tags)
    assert torch.equal(compiled(*given_now), module(*given_now))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("what", CALLS)
def test_export_with_any_batch_and_time(what, strict):
    arguments, tags = case(3, 7, 5, torch.float32, gaps=True)
    module = Call(crf_of(arguments), what)
    batch, time = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("time", min=2, max=512)
    given_now = (*arguments[:2], tags)
    exported = torch.export.export(
        module, given_now, dynamic_shapes=({0: batch, 1: time},) * 3, strict=strict
    )
    for shape in ((2, 2), (5, 33)):
        other, tags = case(*shape, 5, torch.float32, gaps=True)
        assert torch.equal(exported.module()(*other[:2], tags), module(*other[:2], tags))


def test_compiled_code_shows_wrong_tags_as_nan():
    arguments, tags = case(3, 7, 5, torch.float32)
    crf = crf_of(arguments)
    tags[1, 0] = 5
    torch._dynamo.reset()
    found = torch.compile(crf, backend="eager", fullgraph=True)(arguments.emissions, tags, None, "none")
    assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_compiled_code_shows_no_path_as_minus_one(wrong):
    arguments, _ = case(3, 7, 5, torch.float32)
    crf = crf_of(arguments)
    arguments.emissions[1, 3, 2] = wrong

    def paths(emissions, mask):
        return crf.decode(emissions, mask, as_tensor=True), crf.kbest(emissions, 2, mask)[0]

    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(paths, backend="eager", fullgraph=True)(arguments.emissions, arguments.mask)
        for part in found:
            assert (part[1] == -1).all()
        keep = torch.tensor([0, 2])
        expected = paths(arguments.emissions[keep], arguments.mask[keep])
    assert all(torch.equal(part[keep], one) for part, one in zip(found, expected, strict=True))


def test_rows_that_a_compiled_loss_leaves_out_leave_no_trace():
    arguments, tags = case(3, 7, 5, torch.float32)
    crf, keep = crf_of(arguments), torch.tensor([0, 2])
    expected = with_gradients(crf, arguments.emissions[keep], tags[keep], arguments.mask[keep])
    arguments.emissions[1, 3] = -torch.inf
    emissions = arguments.emissions.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(crf, backend="eager", fullgraph=True)
    found = compiled(emissions, tags, arguments.mask, "none")
    assert found.isfinite().tolist() == [True, False, True]
    crf.zero_grad()
    found[keep].sum().backward()
    assert not emissions.grad[1].any()
    gradients = (emissions.grad[keep], *(part.grad for part in crf.parameters()))
    for one, other in zip(gradients, expected[1:], strict=True):
        close(one, other)


def test_compiled_entropy_shows_no_path_as_nan():
    arguments, _ = case(3, 7, 5, torch.float32)
    crf = crf_of(arguments)
    arguments.emissions[1, 3] = -torch.inf
    torch._dynamo.reset()
    found = torch.compile(crf.entropy, backend="eager", fullgraph=True)(arguments.emissions, arguments.mask)
    assert found.requires_grad
    assert found.isfinite().tolist() == [True, False, True]


def test_copies_pickles_and_dtypes():
    crf = CRF(4, batch_first=True)
    emissions, tags = torch.randn(2, 3, 4), torch.randint(4, (2, 3))
    for other in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf))):
        assert torch.equal(other(emissions, tags), crf(emissions, tags))
    assert crf.double()(emissions, tags).dtype == torch.float64
    # The parameters are rounded to bfloat16 here, the sums are not.
    assert crf.bfloat16()(emissions, tags).dtype == torch.float32
    assert CRF(np.int64(4)).num_tags == 4


def test_empty_batches_and_times():
    crf = CRF(3, batch_first=True)
    assert crf.decode(torch.zeros(0, 4, 3)) == []
    assert crf.decode(torch.zeros(2, 0, 3)) == [[], []]
    for shape in ((0, 4), (2, 0)):
        emissions, tags = torch.zeros(*shape, 3), torch.zeros(shape, dtype=torch.int64)
        for weights in (None, torch.ones(3)):
            found = crf(emissions, tags, None, "none", weights)
            assert found.tolist() == [0] * shape[0]
        assert crf.entropy(emissions).tolist() == [0] * shape[0]
        assert crf.entropy(emissions.requires_grad_()).tolist() == [0] * shape[0]


shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 30))


@given(shapes)
def test_the_probabilities_of_all_sequences_sum_to_1(shape):
    arguments, _ = case(*shape[:3], seed=shape[3], gaps=True)
    crf, mask = crf_of(arguments), arguments.mask
    for emissions, valid in zip(arguments.emissions, mask, strict=True):
        paths = list(itertools.product(range(shape[2]), repeat=int(valid.sum())))
        tags = torch.full((len(paths), shape[1]), -100)
        tags[:, valid] = torch.tensor(paths)
        many = emissions.expand(len(paths), -1, -1), tags, valid.expand(len(paths), -1)
        assert float(crf(*many, "none").detach().exp().sum()) == pytest.approx(1)


@given(shapes)
def test_entropy_lies_between_one_path_and_all_alike(shape):
    arguments, _ = case(*shape[:3], torch.float32, shape[3], gaps=True)
    crf = crf_of(arguments)
    most = arguments.mask.sum(1) * np.log(shape[2])
    found = crf.entropy(*arguments[:2])
    with torch.no_grad():
        torch.testing.assert_close(found, crf.entropy(*arguments[:2]), rtol=1e-5, atol=1e-5)
    assert (found >= -1e-6).all()
    assert (found <= most + 1e-5).all()
    for part in crf.parameters():
        torch.nn.init.zeros_(part)
    uniform = crf.entropy(torch.zeros_like(arguments.emissions), arguments.mask)
    np.testing.assert_allclose(uniform.detach().numpy(), most.numpy(), rtol=1e-6, atol=1e-6)


@given(shapes, st.floats(-100, 100))
def test_a_constant_on_all_tags_of_a_position_changes_nothing(shape, constant):
    arguments, tags = case(*shape[:3], seed=shape[3], gaps=True)
    crf, (emissions, mask) = crf_of(arguments), arguments[:2]
    moved = emissions.clone()
    moved[:, 0] += constant
    weights = torch.arange(1, shape[2] + 1).double()
    for options in ({}, {"weights": weights}):
        one, two = (crf(scores, tags, mask, "none", **options) for scores in (emissions, moved))
        close(one, two.detach().numpy())
    close(crf.entropy(moved, mask), crf.entropy(emissions, mask).detach().numpy())
