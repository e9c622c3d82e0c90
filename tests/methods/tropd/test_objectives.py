"""Objectives summed over a small vocabulary: expected gradients, bounds, stages and refusals."""

import math

import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.losses.top_k import top_k_terms
from petkit.methods.tropd.algorithm import FLOOR, importance_weights
from petkit.methods.tropd.config import DistillConfig, ObjectiveConfig
from petkit.methods.tropd.objectives import REGISTRY, Tokens, draw_trust, most_uncertain, objective_sum
from petkit.ops.divergence import divergence
from tests.reference import tropd as reference

NAN, INF = float("nan"), float("inf")
CONTEXTS, VOCAB, K = 5, 7, 3
SEEDS = range(6)
KINDS = tuple(REGISTRY)


class Tables:
    """Softmax tables of both sides; every token of the vocabulary stands once in every context."""

    def __init__(self, seed, spread=2.0, k=K):
        generator = torch.Generator().manual_seed(seed)
        tables = [spread * torch.randn(CONTEXTS, VOCAB, generator=generator) for _ in range(2)]
        self.logits, self.teacher_logits = tables[0].requires_grad_(), tables[1]
        self.log_q = torch.log_softmax(self.logits, -1)
        self.log_p = torch.log_softmax(self.teacher_logits, -1)
        self.q, self.p = (one.detach().double().exp().numpy() for one in (self.log_q, self.log_p))
        top = self.log_p.topk(k, -1)
        every = (CONTEXTS, VOCAB, k)
        mask = torch.ones(CONTEXTS, VOCAB, dtype=torch.bool)
        self.tokens = Tokens(
            student_log_probs=self.log_q,
            teacher_log_probs=self.log_p,
            mask=mask,
            prefix_mask=~mask,
            student_entropy=entropy(self.log_q),
            teacher_entropy=entropy(self.log_p),
            student_top_log_probs=self.log_q.gather(-1, top.indices)[:, None].expand(every),
            top_log_probs=top.values[:, None].expand(every),
            trust=torch.minimum((self.log_p - self.log_q).exp(), torch.ones(())).detach(),
        )

    def with_(self, **changes):
        return Tokens(**{**vars(self.tokens), **changes})

    def expected_slope(self, terms):
        """The gradient in the student's logits of the mean of terms under the student."""
        weights = torch.as_tensor(self.q, dtype=torch.float32)
        (slope,) = torch.autograd.grad((weights * terms).sum(), self.logits, retain_graph=True)
        return slope.double().numpy()


def entropy(log_probs):
    rows = -(log_probs.exp() * log_probs).sum(-1, keepdim=True).detach()
    return rows.expand_as(log_probs)


def config(kind, **values):
    return ObjectiveConfig(kind=kind, **values)


def terms_of(tokens, kind, progress=0.0, **values):
    return REGISTRY[kind](tokens, config(kind, **values), progress)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_opd_has_the_reverse_divergences_gradient(seed):
    tables = Tables(seed)
    wanted = [reference.reverse_kl_slope(q, p) for q, p in zip(tables.q, tables.p, strict=True)]
    close(tables.expected_slope(terms_of(tables.tokens, "opd")), wanted)
    # And so has the square of the log-ratio over 2, back-propagated.
    close(tables.expected_slope((tables.log_q - tables.log_p) ** 2 / 2), wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_back_propagating_the_estimates_themselves_is_another_thing(seed):
    tables = Tables(seed)
    gain = tables.log_p - tables.log_q
    close(tables.expected_slope(-gain), np.zeros((CONTEXTS, VOCAB)))
    forward = [reference.forward_kl_slope(q, p) for q, p in zip(tables.q, tables.p, strict=True)]
    close(tables.expected_slope(gain.exp() - 1 - gain), forward)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_outside_is_the_total_variation(seed):
    tables = Tables(seed, spread=4.0)
    drawn = draw_trust(tables.log_q, tables.log_p, config("tropd", trust="expected"), torch.Generator())
    assert not drawn.requires_grad
    outside = (tables.q * (1 - drawn.double().numpy())).sum(-1)
    wanted = [reference.total_variation(q, p) for q, p in zip(tables.q, tables.p, strict=True)]
    close(outside, wanted)


def test_draws_are_outside_as_often_as_the_total_variation():
    tables, n = Tables(1), 60_000
    generator = torch.Generator().manual_seed(8)
    ids = torch.multinomial(torch.as_tensor(tables.q), n, replacement=True, generator=generator)
    student, teacher = (one.detach().gather(-1, ids) for one in (tables.log_q, tables.log_p))
    drawn = draw_trust(student, teacher, config("tropd"), generator)
    for row in range(CONTEXTS):
        wanted = reference.total_variation(tables.q[row], tables.p[row])
        assert abs(float(1 - drawn[row].mean()) - wanted) < 4 * math.sqrt(wanted / n)


def test_a_trusted_signal_is_bounded_and_opds_is_not():
    """M R under the student is q min(r, 1) log r, which is no less than -q / e; q log r has no bound."""
    log_q = torch.log(torch.tensor([[0.3]]))
    ratios = torch.cat([torch.tensor([0.0]), torch.logspace(-11, 0, 400)])
    student = log_q.expand(1, len(ratios)).clone().requires_grad_()
    teacher = (log_q + ratios.log()).detach()
    blank = torch.zeros(1, len(ratios), dtype=torch.bool)
    trust = draw_trust(student, teacher, config("tropd", trust="expected"), torch.Generator())
    tokens = Tokens(student, teacher, ~blank, blank, blank.float(), trust=trust)
    slopes = {}
    for kind, more in (("opd", {}), ("tropd", {"outlier": "mask"}), ("tropd", {"outlier": "clip"})):
        terms = terms_of(tokens, kind, **more)
        (slope,) = torch.autograd.grad(terms.sum(), student)
        slopes[more.get("outlier", kind)] = slope
    assert float(slopes["mask"].max()) == pytest.approx(1 / math.e, abs=1e-4)
    assert float(slopes["mask"].min()) >= 0
    assert float(slopes["clip"].max()) <= 1 / math.e - FLOOR
    assert float(slopes["opd"].max()) > 20
    assert slopes["opd"].isfinite().all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trust", ["bernoulli", "expected", "hard"])
def test_a_trust_region_with_opd_outside_is_opd(seed, trust):
    tables = Tables(seed)
    drawn = draw_trust(tables.log_q, tables.log_p, config("tropd", trust=trust), torch.Generator())
    inside = terms_of(tables.with_(trust=drawn), "tropd", outlier="rkl")
    close(tables.expected_slope(inside), tables.expected_slope(terms_of(tables.tokens, "opd")))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("outlier", ["fkl", "mask", "clip"])
def test_the_expected_gradient_of_a_trust_region(seed, outlier):
    """sum_v q_v (-M R - (1 - M) worth) d log q_v, and with fkl (1 - M) times that of the forward KL."""
    tables = Tables(seed)
    found = tables.expected_slope(terms_of(tables.tokens, "tropd", outlier=outlier))
    for row, (q, p) in enumerate(zip(tables.q, tables.p, strict=True)):
        gain, trust = np.log(p / q), np.minimum(p / q, 1)
        worth = np.maximum(gain, FLOOR) if outlier == "clip" else 0
        weights = -q * (trust * gain + (1 - trust) * worth)
        wanted = weights - q * weights.sum()
        if outlier == "fkl":
            top = np.zeros(VOCAB)
            chosen = np.argsort(-p)[:K]
            top[chosen] = p[chosen]
            wanted = wanted + reference.total_variation(q, p) * (q * top.sum() - top)
        close(found[row], wanted)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_gkd_is_the_divergence_of_every_token(seed, beta):
    tables = Tables(seed)
    found = divergence(tables.logits, tables.teacher_logits, beta).loss
    tokens = tables.with_(divergence=found[:, None].expand(CONTEXTS, VOCAB))
    terms = terms_of(tokens, "gkd", jsd_beta=beta)
    assert torch.equal(terms, tokens.divergence)
    wanted = [reference.jsd_slope(q, p, beta) for q, p in zip(tables.q, tables.p, strict=True)]
    close(tables.expected_slope(terms), wanted)


@pytest.mark.parametrize("tail", ["none", "renormalize", "bucket"])
def test_fkl_is_the_forward_divergence_everywhere(tail):
    tables = Tables(2)
    wanted = reference.top_k_forward_kl(
        *(
            one.detach().double().numpy()
            for one in (tables.tokens.student_top_log_probs, tables.tokens.top_log_probs)
        ),
        tail,
    )
    close(terms_of(tables.tokens, "fkl", tail=tail).detach(), wanted)
    whole = Tables(2, k=VOCAB)
    slope = whole.expected_slope(terms_of(whole.tokens, "fkl"))
    close(slope, [reference.forward_kl_slope(q, p) for q, p in zip(whole.q, whole.p, strict=True)])


def test_eopd_adds_the_forward_divergence_above_a_threshold():
    tables = Tables(3)
    entropies = torch.tensor([0.0, 0.5, 0.8, 0.8001, 1.9])
    tokens = tables.with_(teacher_entropy=entropies[:, None].expand(CONTEXTS, VOCAB))
    opd, eopd = terms_of(tokens, "opd"), terms_of(tokens, "eopd")
    forward = top_k_terms(tokens.student_top_log_probs, tokens.top_log_probs)
    uncertain = torch.tensor([[False], [False], [False], [True], [True]])
    torch.testing.assert_close(eopd, opd + uncertain * forward)
    assert torch.equal(terms_of(tokens, "eopd", entropy_threshold=1.9), opd)
    everywhere = terms_of(tokens, "eopd", entropy_threshold=0.0)[1:]
    torch.testing.assert_close(everywhere, (opd + forward)[1:])


def worth(values, **more):
    """Tokens of one row that are worth so much."""
    teacher = -5.0 + torch.tensor([values])
    student = torch.full_like(teacher, -5.0).requires_grad_()
    blank = torch.zeros_like(teacher, dtype=torch.bool)
    entropies = torch.arange(float(len(values)))[None]
    return Tokens(
        **{"mask": ~blank, "prefix_mask": blank, "student_entropy": entropies} | more,
        student_log_probs=student,
        teacher_log_probs=teacher,
    )


def signals(tokens, kind, progress=0.0, **values):
    """What the tokens' log-probabilities are pushed up by."""
    summed = objective_sum(tokens, config(kind, **values), progress)
    (slope,) = torch.autograd.grad(summed, tokens.student_log_probs)
    return [-round(value, 4) for value in slope[0].tolist()]


def test_reopold_has_a_floor_and_two_stages():
    tokens = worth([-9.0, -1.386, -1.0, 0.5, 4.0])
    # Exploration: tokens at the floor and beneath it learn nothing.
    assert signals(tokens, "reopold", 0.0) == [0, 0, -1.0, 0.5, 4.0]
    assert signals(tokens, "reopold", 0.49) == [0, 0, -1.0, 0.5, 4.0]
    # Refinement: the most uncertain half, which are the last three of five, floored.
    assert signals(tokens, "reopold", 0.5) == [0, 0, -1.0, 0.5, 4.0]
    assert signals(tokens, "reopold", 0.5, keep_entropy=1.0) == [-1.386, -1.386, -1.0, 0.5, 4.0]
    assert signals(tokens, "reopold", 0.99, keep_entropy=0.2) == [0, 0, 0, 0, 4.0]
    assert signals(tokens, "reopold", 0.0, exploration=0.0, keep_entropy=1.0, floor=-3.0)[0] == -3.0
    assert signals(tokens, "reopold", 0.99, exploration=1.0) == [0, 0, -1.0, 0.5, 4.0]
    # On the floor, which is a number that float32 has.
    assert signals(worth([-1.75, -1.5, -1.25]), "reopold", 0.0, floor=-1.5) == [0, 0, -1.25]
    assert signals(tokens, "opd") == [-9.0, -1.386, -1.0, 0.5, 4.0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("part", [1e-6, 0.2, 0.5, 1.0])
def test_the_most_uncertain_tokens_are_the_highest_with_their_ties(seed, part):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 10)
    # Of so few values that many are equal.
    entropies = torch.randint(4, shape, generator=generator).float()
    mask = torch.rand(shape, generator=generator) < 0.8
    prefix = mask & (torch.rand(shape, generator=generator) < 0.3)
    tokens = Tokens(torch.zeros(shape), torch.zeros(shape), mask, prefix, entropies)
    own = (mask & ~prefix).numpy()
    found = most_uncertain(tokens, part).numpy()
    assert not (found & ~own).any()
    np.testing.assert_array_equal(
        found[own], reference.kept_by_entropy(entropies.double().numpy()[own], part)
    )


def test_of_no_own_tokens_none_is_uncertain():
    all_given = torch.ones(2, 3, dtype=torch.bool)
    tokens = Tokens(torch.zeros(2, 3), torch.zeros(2, 3), all_given, all_given, torch.ones(2, 3))
    assert not most_uncertain(tokens, 0.5).any()


def batch(seed, spoil=None):
    """A batch of every kind of token: of the student, of the teacher, and none."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 8)
    mask = torch.arange(8) < torch.tensor([[8], [5], [2]])
    prefix = mask & (torch.arange(8) < torch.tensor([[3], [0], [1]]))
    names = ("student_log_probs", "teacher_log_probs", "student_entropy", "teacher_entropy", "divergence")
    values = {name: torch.rand(shape, generator=generator) for name in names}
    tops = {
        name: -3 * torch.rand(*shape, K, generator=generator)
        for name in ("student_top_log_probs", "top_log_probs")
    }
    values |= {"student_log_probs": -values["student_log_probs"]}
    values |= {"teacher_log_probs": -3 * values["teacher_log_probs"]}
    values |= tops | {"trust": torch.rand(shape, generator=generator)}
    if spoil is not None:
        for value in values.values():
            value[~mask] = spoil
    for name in ("student_log_probs", "student_top_log_probs", "divergence"):
        values[name].requires_grad_()
    return Tokens(mask=mask, prefix_mask=prefix, **values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_a_sum_is_over_tokens_of_responses_with_the_prefixes_weighed(kind, progress):
    tokens = batch(1)
    settings = config(kind, prefix_weight=0.25)
    terms = REGISTRY[kind](tokens, settings, progress)
    if kind in ("gkd", "fkl"):
        wanted = terms[tokens.mask].sum()
    else:
        given = (tokens.teacher_log_probs - tokens.student_log_probs)[tokens.prefix_mask].sum()
        wanted = terms[tokens.own].sum() + 0.25 * given
    torch.testing.assert_close(objective_sum(tokens, settings, progress), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filler", [NAN, INF, -INF])
def test_what_is_behind_the_mask_does_not_matter(kind, filler):
    results = []
    for spoil in (None, filler):
        tokens = batch(2, spoil)
        summed = objective_sum(tokens, config(kind), 0.7)
        summed.backward()
        grads = [tokens.student_log_probs.grad, tokens.student_top_log_probs.grad, tokens.divergence.grad]
        found = [summed.detach(), *(one for one in grads if one is not None)]
        assert all(one.isfinite().all() for one in found)
        results.append(found)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_finds_a_token_impossible_is_bounded(kind):
    tokens = batch(3)
    tokens.teacher_log_probs[:, 1:4] = -INF
    tokens.top_log_probs[..., 1:] = -INF
    summed = objective_sum(tokens, config(kind), 0.0)
    summed.backward()
    assert summed.isfinite()
    for one in (tokens.student_log_probs, tokens.student_top_log_probs):
        assert one.grad is None or one.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_of_the_teacher_is_refused(kind):
    tokens = batch(4)
    tokens.teacher_log_probs[0, 3] = NAN
    with pytest.raises(InputError, match="teacher_log_probs must be log-probabilities, got nan in 1 places"):
        objective_sum(tokens, config(kind), 0.0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gkd", "divergence"),
        ("fkl", "top_log_probs"),
        ("fkl", "student_top_log_probs"),
        ("eopd", "teacher_entropy"),
        ("eopd", "top_log_probs"),
        ("tropd", "trust"),
    ],
)
def test_what_an_objective_needs_is_named(kind, name):
    tokens = Tokens(**{**vars(batch(5)), name: None})
    with pytest.raises(InputError, match=f"this objective needs {name}, got none"):
        objective_sum(tokens, config(kind), 0.0)


def test_outlier_fkl_needs_the_likeliest_tokens():
    tokens = Tokens(**{**vars(batch(6)), "top_log_probs": None})
    with pytest.raises(InputError, match="outlier fkl needs student_top_log_probs and top_log_probs"):
        objective_sum(tokens, config("tropd"), 0.0)
    objective_sum(tokens, config("tropd", outlier="mask"), 0.0)


def test_the_registry_has_every_kind_of_the_recipe():
    kinds = DistillConfig.model_json_schema()["$defs"]["ObjectiveConfig"]["properties"]["kind"]["enum"]
    assert set(REGISTRY) == set(kinds)


def test_objectives_without_a_trust_region_are_measured_by_the_expected_one():
    tables = Tables(7)
    generator = torch.Generator().manual_seed(0)
    found = draw_trust(tables.log_q, tables.log_p, config("opd"), generator)
    torch.testing.assert_close(found, tables.tokens.trust)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["opd", "eopd", "reopold", "tropd"])
def test_another_policys_draws_count_by_importance(seed, kind):
    tables = Tables(seed)
    other = torch.log_softmax(torch.randn(CONTEXTS, VOCAB, generator=torch.Generator().manual_seed(seed)), -1)
    # The mean over the other policy's draws of what they count, summed over all tokens.
    weights = other.exp() * importance_weights(tables.log_q, other, 1e9)
    total = objective_sum(tables.with_(importance=weights), config(kind), 0.0)
    (slope,) = torch.autograd.grad(total, tables.logits, retain_graph=True)
    close(slope.double().numpy(), tables.expected_slope(terms_of(tables.tokens, kind)))


def test_a_divergence_is_what_it_is_whoever_drew_the_token():
    tables = Tables(0)
    weighed = tables.with_(importance=torch.full((CONTEXTS, VOCAB), 0.1))
    assert objective_sum(weighed, config("fkl"), 0.0) == objective_sum(tables.tokens, config("fkl"), 0.0)


def test_a_teachers_prefix_counts_as_it_did():
    tables = Tables(0)
    given = tables.with_(prefix_mask=torch.ones(CONTEXTS, VOCAB, dtype=torch.bool))
    weighed = Tokens(**{**vars(given), "importance": torch.full((CONTEXTS, VOCAB), 0.1)})
    assert objective_sum(weighed, config("opd"), 0.0) == objective_sum(given, config("opd"), 0.0)
