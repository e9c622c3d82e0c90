"""What CRF has beyond torchcrf: constraints, partial labels, weights; and everything that it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.nn import CRF, Constraints, bio_constraints
from tests.nn.crf_cases import case, close, crf_of, with_gradients
from tests.ops.crf_cases import rows
from tests.reference import crf as reference

BIO = bio_constraints(["O", "B-X", "I-X"])


def restricted(row, constraints):
    """A row of the reference with -inf where constraints forbid."""
    emissions, parameters = row
    where = (
        np.where(part.numpy(), score, -np.inf) for part, score in zip(constraints, parameters, strict=True)
    )
    return emissions, tuple(where)


def enumerated(row):
    with np.errstate(divide="ignore", invalid="ignore"):
        return reference.enumerated(*row)


@pytest.mark.parametrize("constrain", ["both", "decode"])
def test_constraints_against_enumeration(constrain):
    arguments, tags = case(5, 5, 3, gaps=True)
    crf, (emissions, mask) = crf_of(arguments, constraints=BIO, constrain=constrain), arguments[:2]
    found = crf(emissions, tags, mask, "none")
    paths, scores = crf.kbest(emissions, 3, mask)
    marginals, best = crf.marginals(emissions, mask), crf.decode(emissions, mask)
    for b, row in enumerate(rows(arguments)):
        legal, free = enumerated(restricted(row, BIO)), enumerated(row)
        expected = legal if constrain == "both" else free
        judge = restricted(row, BIO) if constrain == "both" else row
        path = tuple(tags[b][mask[b]].tolist())
        close(found[b], reference.score(path, *judge) - expected["log_z"])
        close(crf.log_partition(emissions, mask)[b], expected["log_z"])
        close(scores[b], (legal["best"].tolist() + [-np.inf] * 3)[:3])
        close(marginals[b][mask[b]], legal["marginals"])
        close(crf.entropy(emissions, mask)[b], legal["entropy"])
        assert reference.score(tuple(best[b]), *row) == pytest.approx(float(legal["best"][0]))
        assert paths[b, 0][mask[b]].tolist() == best[b]


def test_what_is_forbidden_is_never_sampled_and_learns_nothing():
    arguments, _ = case(3, 6, 3)
    crf, (emissions, mask) = crf_of(arguments, constraints=BIO), arguments[:2]
    samples = crf.sample(emissions, 500, mask, torch.Generator().manual_seed(0))
    for sample in samples.flatten(0, 1):
        path = sample[sample >= 0].tolist()
        assert BIO.start[path[0]]
        assert all(BIO.transitions[a, b] for a, b in itertools.pairwise(path))
    _, _, start, _, transitions = with_gradients(crf, emissions, samples[0].clamp_min(0), mask)
    assert not start[~BIO.start].any()
    assert not transitions[~BIO.transitions].any()
    assert transitions.isfinite().all()
    assert transitions[BIO.transitions].all()


def test_constraints_are_no_state():
    crf = CRF(3, constraints=BIO)
    assert list(crf.state_dict()) == ["start_transitions", "end_transitions", "transitions"]
    crf.load_state_dict(CRF(3).state_dict(), strict=True)
    assert crf.double().transitions_allowed.dtype == torch.bool
    assert crf.to("meta").transitions_allowed.device.type == "meta"


def test_repr_counts_what_is_allowed():
    counts = "Constraints(8 of 9 transitions, 2 of 3 first tags, 3 of 3 last tags)"
    assert repr(BIO) == counts
    crf = CRF(3, constraints=BIO, constrain="decode")
    assert repr(crf) == f"CRF(num_tags=3, constraints={counts}, constrain='decode')"
    assert repr(crf.to("meta")) == "CRF(num_tags=3, constraints=Constraints(...), constrain='decode')"


def test_constraints_compile_and_export():
    arguments, _ = case(3, 6, 3, torch.float32)
    crf = crf_of(arguments, constraints=BIO)
    expected = crf.decode(arguments.emissions, arguments.mask, as_tensor=True)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.crf = crf

        def forward(self, emissions, mask):
            return self.crf.decode(emissions, mask, as_tensor=True)

    for strict in (True, False):
        exported = torch.export.export(Decoder(), tuple(arguments[:2]), strict=strict)
        assert torch.equal(exported.module()(*arguments[:2]), expected)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ([2, 0, 0, 0], "at time 0 tag 2 may not be the first"),
        ([0, 0, 1, 2], "at time 3 the emission of tag 2 is -inf"),
        # The mask skips time 1.
        ([0, 1, 2, 0], "at time 2 tag 2 may not follow tag 0"),
        ([0, 0, 0, 1], "at time 3 tag 1 may not be the last"),
    ],
)
@pytest.mark.parametrize("weights", [None, torch.ones(3)])
def test_forbidden_tags_are_named(path, why, weights):
    constraints = BIO._replace(end=torch.tensor([True, False, True]))
    crf = CRF(3, batch_first=True, constraints=constraints)
    emissions, mask = torch.zeros(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])
    emissions[1, 3, 2] = -torch.inf
    tags = torch.tensor([[0, 0, 0, 0], path])
    for reduction in ("sum", "mean", "token_mean"):
        with pytest.raises(InputError, match=f"tags of batch 1 are impossible, log-likelihood -inf: {why}; "):
            crf(emissions, tags, mask, reduction, weights)
    found = crf(emissions, tags, mask, "none", weights)
    assert found[0].isfinite()
    assert found[1] == -torch.inf
    free = CRF(3, batch_first=True, constraints=constraints, constrain="decode")
    if "emission" not in why:
        assert free(emissions, tags, mask, "sum", weights).isfinite()


def test_constraints_without_a_path_name_the_row():
    only_once = Constraints(torch.zeros(2, 2).bool(), torch.ones(2).bool(), torch.ones(2).bool())
    crf = CRF(2, batch_first=True, constraints=only_once)
    mask = torch.tensor([[1, 0], [1, 1]])
    emissions, tags = torch.zeros(2, 2, 2), torch.zeros(2, 2, dtype=torch.int64)
    for call in (
        lambda: crf(emissions, tags, mask),
        lambda: crf(emissions, tags, mask, "sum", torch.ones(2)),
        lambda: crf.decode(emissions, mask),
        lambda: crf.kbest(emissions, 2, mask),
        lambda: crf.marginals(emissions, mask),
        lambda: crf.sample(emissions, 2, mask),
        lambda: crf.entropy(emissions, mask),
        lambda: crf.log_partition(emissions, mask),
    ):
        with pytest.raises(InputError, match=r"no path is possible at batch 1.*loosen its constraints"):
            call()


@pytest.mark.parametrize("constraints", [None, BIO])
def test_partial_labels_against_enumeration(constraints):
    arguments, _ = case(5, 5, 3, gaps=True)
    crf, (emissions, mask) = crf_of(arguments, constraints=constraints), arguments[:2]
    allowed = torch.rand((5, 5, 3), generator=torch.Generator().manual_seed(2)) < 0.5
    allowed[:, :, 1] = True
    allowed[0, 2, :] = True
    # Nothing is allowed where nothing is.
    allowed &= mask[:, :, None]
    found = crf(emissions, allowed, mask, "none")
    for b, row in enumerate(rows(arguments)):
        row = row if constraints is None else restricted(row, constraints)
        paths, scores = reference.all_paths(*row)
        given_tags = allowed[b][mask[b]].numpy()
        inside = [all(given_tags[i, tag] for i, tag in enumerate(path)) for path in paths]
        close(found[b], reference.logsumexp(scores[inside]) - reference.logsumexp(scores))
    assert float(crf(emissions, allowed, mask, "token_mean").detach()) == pytest.approx(
        float(found.detach().sum() / mask.sum())
    )


ONLY_I = torch.tensor([False, False, True])


@pytest.mark.parametrize(
    ("allowed", "end", "message"),
    [
        ([ONLY_I, ONLY_I], None, "at time 0 none of the allowed tags 2 may be the first"),
        ([~ONLY_I, ONLY_I], -torch.inf, "at time 2 none of the allowed tags 2 may be the last"),
        (
            [torch.tensor([True, False, False]), torch.tensor([False, False, True])],
            None,
            "at time 2 none of the allowed tags 2 may follow those that are possible before",
        ),
    ],
)
def test_partial_labels_that_constraints_forbid_are_named(allowed, end, message):
    crf, emissions = CRF(3, batch_first=True, constraints=BIO), torch.randn(2, 3, 3)
    mask = torch.tensor([[True] * 3, [True, False, True]])
    labels = torch.ones((2, 3, 3), dtype=torch.bool)
    labels[1, 0], labels[1, 2] = allowed
    if end is not None:
        with torch.no_grad():
            crf.end_transitions[2] = end
    with pytest.raises(InputError, match=f"tags of batch 1 are impossible, log-likelihood -inf: {message}"):
        crf(emissions, labels, mask)
    found = crf(emissions, labels, mask, "none")
    assert found.isneginf().tolist() == [False, True]
    found[:1].sum().backward()
    assert all(part.grad.isfinite().all() for part in crf.parameters())


@pytest.mark.parametrize("batch_first", [True, False])
def test_labels_that_are_all_known_or_all_unknown(batch_first):
    arguments, tags = case(4, 6, 3, gaps=True)
    crf, (emissions, mask) = crf_of(arguments), arguments[:2]
    crf.batch_first = batch_first
    if not batch_first:
        emissions, tags, mask = (part.transpose(0, 1) for part in (emissions, tags, mask))
    known = torch.nn.functional.one_hot(tags, 3).bool()
    expected = with_gradients(crf, emissions, tags, mask)
    for one, two in zip(with_gradients(crf, emissions, known, mask), expected, strict=True):
        close(one, two)
    for part in with_gradients(crf, emissions, torch.ones_like(known), mask):
        close(part, torch.zeros_like(part))


def chain_rule(path, row, weights):
    """Sum of weight * log p(tag | all before it), from sums over all paths with a common beginning."""
    paths, scores = reference.all_paths(*row)
    begins = [
        reference.logsumexp(scores[[other[:i] == path[:i] for other in paths]]) for i in range(len(path) + 1)
    ]
    return sum(weights[tag] * (begins[i + 1] - begins[i]) for i, tag in enumerate(path))


@pytest.mark.parametrize("constraints", [None, BIO])
def test_weights_against_enumeration(constraints):
    arguments, tags = case(5, 5, 3, gaps=True)
    crf, (emissions, mask) = crf_of(arguments, constraints=constraints), arguments[:2]
    tags = tags if constraints is None else crf.decode(emissions, mask, as_tensor=True)
    weights = torch.tensor([0.1, 2.0, 5.0])
    found = crf(emissions, tags, mask, "none", weights)
    exact = weights.double().tolist()
    for b, row in enumerate(rows(arguments)):
        row = row if constraints is None else restricted(row, constraints)
        close(found[b], chain_rule(tuple(tags[b][mask[b]].tolist()), row, exact))
    total = weights[tags[mask]].double().sum()
    close(crf(emissions, tags, mask, "token_mean", weights), (found.sum() / total).detach(), atol=1e-7)
    close(crf(emissions, tags, mask, "sum", weights), found.sum().detach())
    close(crf(emissions, tags, mask, "mean", weights), found.mean().detach())
    single = crf.float()(emissions.float(), tags, mask, "token_mean", weights.double())
    assert single.dtype == torch.float32


def test_a_mean_over_weights_of_0_is_refused():
    crf, tags = CRF(3, batch_first=True), torch.tensor([[0, 1], [1, 0]])
    weights = torch.tensor([0.0, 0.0, 1.0])
    with pytest.raises(InputError, match="token_mean needs a tag whose weight is above 0, got none"):
        crf(torch.zeros(2, 2, 3), tags, None, "token_mean", weights)
    assert crf(torch.zeros(2, 2, 3), tags, None, "sum", weights) == 0


def test_weights_of_1_are_none_and_weights_are_linear():
    arguments, tags = case(4, 6, 3, gaps=True)
    crf, (emissions, mask) = crf_of(arguments), arguments[:2]
    expected = with_gradients(crf, emissions, tags, mask, "sum")
    for factor in (1.0, 3.0):
        weights = torch.full((3,), factor)
        for one, two in zip(
            with_gradients(crf, emissions, tags, mask, "sum", weights), expected, strict=True
        ):
            close(one, two * factor)
    single = [crf(emissions, tags, mask, "sum", weights) for weights in torch.eye(3)]
    close(sum(single), expected[0])


def test_the_gradient_of_weights():
    arguments, tags = case(2, 4, 3, gaps=True)
    crf, (emissions, mask) = crf_of(arguments), arguments[:2]
    weights = torch.tensor([0.5, 0.0, 2.0]).double()
    torch.autograd.gradcheck(
        lambda scores: crf(scores, tags, mask, "none", weights), emissions.requires_grad_()
    )


def test_a_forbidden_tag_of_weight_0_counts_for_nothing():
    crf = CRF(2, batch_first=True)
    emissions = torch.zeros(1, 3, 2)
    emissions[0, 2, 1] = -torch.inf
    weights = torch.tensor([1.0, 0.0])
    found = with_gradients(crf, emissions, torch.tensor([[0, 0, 1]]), None, "sum", weights)
    assert all(part.isfinite().all() for part in found)


@given(st.integers(1, 4), st.integers(0, 50))
def test_the_probabilities_of_legal_sequences_sum_to_1(time, seed):
    arguments, _ = case(1, time, 3, seed=seed)
    crf = crf_of(arguments, constraints=BIO)
    tags = torch.tensor(list(itertools.product(range(3), repeat=time)))
    found = crf(arguments.emissions.expand(len(tags), -1, -1), tags, None, "none").detach().exp()
    assert float(found.sum()) == pytest.approx(1)
    illegal = [
        not BIO.start[path[0]] or any(not BIO.transitions[a, b] for a, b in itertools.pairwise(path))
        for path in tags.tolist()
    ]
    assert torch.equal(found == 0, torch.tensor(illegal))


E = torch.zeros(2, 3, 4)
T = torch.zeros(2, 3, dtype=torch.int64)
M = torch.ones(2, 3, dtype=torch.bool)
WRONG = T.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(4))
NOTHING = torch.ones(2, 3, 4, dtype=torch.bool)
NOTHING[1, 2] = False
NAN = E.index_put((torch.tensor(1), torch.tensor(2), torch.tensor(0)), torch.tensor(torch.nan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((E[0], T), r"emissions must be \(batch, time, tags\) with 4 tags, got \(3, 4\)"),
        ((E[:, :, :3], T), r"emissions must be \(batch, time, tags\) with 4 tags, got \(2, 3, 3\)"),
        (([0.0], T), "emissions must be a tensor, got list"),
        ((E.long(), T), "emissions must be float32, .* got torch.int64; use emissions.float"),
        ((NAN, T), "emissions must be finite or -inf, got nan at batch 1, time 2"),
        (
            (E, T.T),
            r"tags must be \(batch, time\) = \(2, 3\) like emissions, got \(3, 2\); batch_first=False",
        ),
        ((E, T[:1]), r"tags must be \(batch, time\) = \(2, 3\) like emissions, got \(1, 3\)$"),
        ((E, T[0]), r"tags must be \(batch, time\) = \(2, 3\) like emissions, got \(3,\)$"),
        ((E, T.tolist()), "tags must be a tensor, got list"),
        ((E, T.float()), r"tags must be integers .* got torch.float32 \(2, 3\)"),
        ((E, M), r"tags must be integers .*or bool with a third axis .* got torch.bool \(2, 3\)"),
        ((E, E), r"tags must be integers .* got torch.float32 \(2, 3, 4\)"),
        ((E, NOTHING[:, :, :2]), r"tags must be bool over 4 tags on its last axis, got \(2, 3, 2\)"),
        ((E, NOTHING), "tags allow no tag at batch 1, time 2: set all 4 where the label is unknown"),
        ((E, WRONG), "tags must be 0 to 3 for 4 tags, got 4 at batch 1, time 2: unset the mask"),
        ((E, T - 100), "tags must be 0 to 3 for 4 tags, got -100 at batch 0, time 0"),
        ((E, T, M.T), r"mask must be \(batch, time\) = \(2, 3\) like emissions, got \(3, 2\); batch_first"),
        ((E, T, M[:, :2]), r"mask must be \(batch, time\) = \(2, 3\) like emissions, got \(2, 2\)$"),
        ((E, T, M[:, :, None]), r"mask must have 2 axes, batch and time, got \(2, 3, 1\)"),
        (
            (E, T, M.float()),
            "mask must be bool or integer, set where a tag is, got torch.float32; use mask.bool",
        ),
        ((E, T, M.tolist()), "mask must be a tensor, got list"),
        (
            (E, T, torch.tensor([[1, 1, 0], [0, 1, 1]])),
            "first position .* that of batch 1 is not set at time 0",
        ),
        ((E, T, torch.tensor([[1, 1, 0], [0, 0, 0]])), "first position .* that of batch 1 is set nowhere"),
        ((E, T, M.to("meta")), "mask must be on cpu like emissions, got meta"),
        ((E, T, M, "average"), "reduction must be one of sum, mean, token_mean, none, got 'average'"),
        (
            (E, T, M, "sum", torch.ones(3)),
            r"weights must be a float tensor \(4,\), .* got torch.float32 \(3,\)",
        ),
        ((E, T, M, "sum", [1.0] * 4), r"weights must be a float tensor \(4,\), .* got list"),
        ((E, T, M, "sum", torch.tensor([1.0, 1, -2, 1])), "weights must be finite .* got -2.0 for tag 2"),
        (
            (E, T, M, "sum", torch.tensor([1.0, torch.inf, 1, 1])),
            "weights must be finite .* got inf for tag 1",
        ),
        ((E, NOTHING | True, M, "sum", torch.ones(4)), "weights need one tag a position, but tags are bool"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        CRF(4, batch_first=True)(*arguments)


def test_batch_and_time_are_named_whatever_comes_first():
    crf = CRF(4)
    emissions, tags = E.transpose(0, 1), WRONG.T
    with pytest.raises(InputError, match="got 4 at batch 1, time 2"):
        crf(emissions, tags)
    with pytest.raises(InputError, match="got nan at batch 1, time 2"):
        crf.decode(NAN.transpose(0, 1))
    with pytest.raises(
        InputError, match=r"mask must be \(time, batch\) = \(3, 2\) like .*; batch_first=True"
    ):
        crf.decode(emissions, M)
    with pytest.raises(InputError, match="that of batch 1 is set nowhere"):
        crf.decode(emissions, torch.tensor([[1, 0], [1, 0], [1, 0]]))
    with pytest.raises(InputError, match=r"emissions must be \(time, batch, tags\) with 4 tags"):
        crf.decode(E[0])


@pytest.mark.parametrize("number", [0, -3, 2.0, "4", None, True, np.True_, torch.tensor(True)])
def test_refused_numbers_of_tags(number):
    with pytest.raises(InputError, match="num_tags must be an integer of at least 1, got"):
        CRF(number)


@pytest.mark.parametrize(("shape", "refused"), [((0, 4), ["mean", "token_mean"]), ((2, 0), ["token_mean"])])
def test_a_mean_over_nothing_is_refused(shape, refused):
    crf, emissions = CRF(4, batch_first=True), torch.zeros(*shape, 4)
    tags = torch.zeros(shape, dtype=torch.int64)
    for reduction in refused:
        expected = (
            f"^reduction {reduction} needs something to average, got batch {shape[0]}, time {shape[1]}:"
        )
        with pytest.raises(InputError, match=expected):
            crf(emissions, tags, reduction=reduction)
    assert crf(emissions, tags) == 0


def test_numbers_may_be_of_numpy():
    two = np.int64(2)
    crf = CRF(np.uint8(4), batch_first=True)
    assert type(crf.num_tags) is int
    assert crf.kbest(E, two)[0].shape == (2, 2, 3)
    assert crf.sample(E, two).shape == (2, 2, 3)


def test_other_refusals():
    crf = CRF(4, batch_first=True)
    with pytest.raises(InputError, match="constrain must be both or decode, got 'train'"):
        CRF(3, constraints=BIO, constrain="train")
    with pytest.raises(
        InputError, match="constrain='decode' has no effect without constraints: leave it out"
    ):
        CRF(3, constrain="decode")
    with pytest.raises(InputError, match="k must be an integer of at least 1, got 0"):
        crf.kbest(E, 0)
    with pytest.raises(InputError, match="num_samples must be an integer of at least 0, got -1"):
        crf.sample(E, -1)
    for wrong in (True, 1.0):
        with pytest.raises(InputError, match=f"k must be an integer of at least 1, got {wrong}"):
            crf.kbest(E, wrong)
        with pytest.raises(InputError, match=f"num_samples must be an integer of at least 0, got {wrong}"):
            crf.sample(E, wrong)
    with pytest.raises(InputError, match="got nan at batch 1, time 2"):
        crf.entropy(NAN)
    with pytest.raises(ValueError, match="got nan at batch 1, time 2"), torch.no_grad():
        crf.entropy(NAN)
