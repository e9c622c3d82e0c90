"""The trust region against its equations in NumPy, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.methods.tropd.algorithm import (
    FLOOR,
    LEAST_LOG_PROB,
    importance_weights,
    prefix_length,
    tropd_loss,
    trust_mask,
)
from tests.reference import tropd as reference

NAN, INF = float("nan"), float("inf")
SHAPE, K = (3, 7), 4
OUTLIERS = ("fkl", "mask", "clip", "rkl")


def tokens(seed, spread=3.0):
    """S, T, the student's and the teacher's top log-probabilities, mask, prefix and trust."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (-spread * torch.rand(SHAPE, generator=generator) for _ in range(2))
    tops = [torch.log_softmax(torch.randn(*SHAPE, 9, generator=generator), -1)[..., :K] for _ in range(2)]
    mask = torch.rand(SHAPE, generator=generator) < 0.7
    prefix = mask & (torch.arange(SHAPE[1]) < torch.tensor([[0], [2], [4]]))
    return student, teacher, *tops, mask, prefix, torch.rand(SHAPE, generator=generator)


def arrays(*tensors):
    return [one.double().numpy() if one.is_floating_point() else one.numpy() for one in tensors]


def given(parts):
    """The arguments of `tropd_loss`; the student's side learns."""
    student, teacher, own_top, top, mask, prefix, trust = parts
    leaves = [one.clone().requires_grad_() for one in (student, own_top)]
    named = {
        "student_top_log_probs": leaves[1],
        "top_log_probs": top,
        "mask": mask,
        "prefix_mask": prefix,
        "trust": trust,
    }
    return leaves, (leaves[0], teacher), named


@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("beta", "floor"), [(0.001, FLOOR), (0.5, -0.3)])
def test_values_and_gradients_are_those_of_the_equations(outlier, seed, beta, floor):
    parts = tokens(seed)
    leaves, sides, named = given(parts)
    value = tropd_loss(*sides, **named, beta=beta, outlier=outlier, floor=floor)
    value.backward()
    student, teacher, own_top, top, mask, prefix, trust = arrays(*parts)
    loss, slope, top_slope = reference.tropd_tokens(
        student, teacher, own_top, top, prefix, trust, beta, outlier, floor
    )
    count = mask.sum()
    assert float(value.detach()) == pytest.approx(loss[mask].sum() / count, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(leaves[0].grad, np.where(mask, slope, 0) / count, rtol=1e-5, atol=1e-7)
    found = torch.zeros_like(leaves[1]) if leaves[1].grad is None else leaves[1].grad
    np.testing.assert_allclose(found, np.where(mask[..., None], top_slope, 0) / count, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tail", ["none", "renormalize", "bucket"])
def test_tails(tail):
    parts = tokens(5)
    _, sides, named = given(parts)
    student, teacher, own_top, top, mask, prefix, trust = arrays(*parts)
    loss, _, _ = reference.tropd_tokens(
        student, teacher, own_top, top, prefix, trust, 0.001, "fkl", FLOOR, tail
    )
    found = float(tropd_loss(*sides, **named, tail=tail).detach())
    assert found == pytest.approx(loss[mask].mean(), rel=1e-5)


def test_the_defaults_are_those_of_the_paper():
    _, sides, named = given(tokens(6))
    explicit = tropd_loss(*sides, **named, beta=0.001, outlier="fkl", floor=-1.386, tail="none")
    assert torch.equal(tropd_loss(*sides, **named), explicit)
    named.pop("prefix_mask")
    without = tropd_loss(*sides, **named, prefix_mask=torch.zeros(SHAPE))
    assert torch.equal(tropd_loss(*sides, **named), without)


def test_a_prefix_counts_among_all_tokens_and_learns_by_likelihood():
    student, teacher = torch.full((1, 4), -2.0, requires_grad=True), torch.full((1, 4), -0.5)
    mask, prefix = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[1, 1, 0, 0]])
    value = tropd_loss(
        student, teacher, mask=mask, prefix_mask=prefix, trust=torch.ones(1, 4), beta=0.1, outlier="mask"
    )
    value.backward()
    # Two tokens of 0.1 * 1.5, and one of -R S = 3, over three.
    assert float(value.detach()) == pytest.approx((0.3 + 3.0) / 3)
    torch.testing.assert_close(student.grad, torch.tensor([[-0.1, -0.1, -1.5, 0.0]]) / 3)


@pytest.mark.parametrize("outlier", OUTLIERS)
def test_a_teacher_that_finds_a_token_impossible_counts_it_as_unlikely(outlier):
    parts = list(tokens(7))
    parts[6] = torch.zeros(SHAPE)
    results = []
    for least in (-INF, -1e30, math.log(1e-12), LEAST_LOG_PROB):
        parts[1] = torch.full(SHAPE, least)
        leaves, sides, named = given(parts)
        value = tropd_loss(*sides, **named, outlier=outlier)
        value.backward()
        assert value.isfinite()
        assert leaves[0].grad.isfinite().all()
        results.append(float(value.detach()))
    assert results == pytest.approx([results[0]] * 4, rel=1e-6)
    assert trust_mask(torch.tensor([-1.0]), torch.tensor([-INF]), "expected") == pytest.approx(
        1e-12 * math.e, rel=1e-4
    )


@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("filler", [NAN, INF, -INF, 7.0])
def test_what_is_behind_a_mask_does_not_matter(outlier, filler):
    parts = tokens(8)
    results = []
    for spoil in (False, True):
        if spoil:
            for place in (0, 1, 2, 3, 6):
                parts[place][~parts[4]] = filler
        leaves, sides, named = given(parts)
        value = tropd_loss(*sides, **named, outlier=outlier)
        value.backward()
        results.append([value.detach(), *(one.grad for one in leaves if one.grad is not None)])
        assert (leaves[0].grad[~parts[4]] == 0).all()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_may_be_of_numbers(dtype):
    _, sides, named = given(tokens(9))
    wanted = tropd_loss(*sides, **named)
    named |= {"mask": named["mask"].to(dtype), "prefix_mask": named["prefix_mask"].to(dtype)}
    assert torch.equal(tropd_loss(*sides, **named), wanted)


def test_nothing_but_the_students_side_learns():
    parts = tokens(10)
    for outlier in OUTLIERS:
        _, (student, teacher), named = given(parts)
        constants = [teacher, named["top_log_probs"], named["trust"]]
        constants = [one.clone().requires_grad_() for one in constants]
        named |= {"top_log_probs": constants[1], "trust": constants[2]}
        tropd_loss(student, constants[0], **named, outlier=outlier).backward()
        assert [one.grad for one in constants] == [None] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_log_probs": NAN}, "teacher_log_probs must be log-probabilities, got nan in 21 places"),
        ({"student_log_probs": NAN}, "student_log_probs must be log-probabilities, got nan"),
        ({"top_log_probs": NAN}, "top_log_probs must be log-probabilities, got nan"),
        ({"top_log_probs": -INF}, "top_log_probs must be finite, or -inf for some tokens, got nothing but"),
        ({"student_top_log_probs": NAN}, "student_top_log_probs must be log-probabilities, got nan"),
        ({"teacher_log_probs": 0.1}, "teacher_log_probs must be log-probabilities of at most 0, got 0.1"),
        ({"student_log_probs": 3.0}, "student_log_probs must be log-probabilities of at most 0, got 3"),
        ({"student_log_probs": -INF}, "student_log_probs must be finite"),
        ({"trust": NAN}, "trust must lie between 0 and 1"),
        ({"trust": 1.5}, "trust must lie between 0 and 1"),
        ({"mask": 0.0}, "at least one token that counts, got none of 21"),
        ({"mask": torch.ones(3, 6)}, r"mask must be \(3, 7\)"),
        ({"teacher_log_probs": torch.ones(3, 1)}, r"teacher_log_probs must be \(3, 7\), got \(3, 1\)"),
        ({"trust": torch.ones(1, 7)}, r"trust must be \(3, 7\), got \(1, 7\)"),
        ({"prefix_mask": torch.ones(7)}, r"prefix_mask must be \(3, 7\), got \(7,\)"),
        ({"top_log_probs": torch.ones(7, 4)}, r"top_log_probs must be \(3, 7\) and one dimension more"),
        ({"top_log_probs": -torch.ones(3, 7, 2)}, r"top_log_probs must be \(3, 7, 4\) as the student's are"),
        ({"top_log_probs": None}, "outlier fkl needs student_top_log_probs and top_log_probs, got none"),
        ({"student_top_log_probs": None}, "outlier fkl needs student_top_log_probs"),
        ({"outlier": "drop"}, "outlier must be one of fkl, mask, clip, rkl, got 'drop'"),
        ({"tail": "rest"}, "tail must be one of none, renormalize, bucket"),
    ],
)
def test_what_cannot_be_used_is_refused(changes, message):
    _, (student, teacher), named = given(tokens(11))
    arguments = {"student_log_probs": student, "teacher_log_probs": teacher, **named}
    arguments["mask"] = torch.ones(SHAPE)
    for name, value in changes.items():
        arguments[name] = torch.full_like(arguments[name], value) if isinstance(value, float) else value
    with pytest.raises(InputError, match=message):
        tropd_loss(**arguments)


@pytest.mark.parametrize("seed", range(3))
def test_expected_and_hard_trust_are_those_of_the_equations(seed):
    student, teacher, *_ = tokens(seed)
    teacher[0, :2] = -INF
    found = trust_mask(student, teacher, "expected")
    np.testing.assert_allclose(found, reference.acceptance(*arrays(student, teacher)), rtol=1e-5, atol=1e-12)
    for threshold in (0.0, -0.7, 0.4):
        found = trust_mask(student, teacher, "hard", threshold=threshold)
        wanted = reference.hard(*arrays(student, teacher), threshold)
        np.testing.assert_array_equal(found, wanted)


def test_a_worth_on_the_threshold_is_inside():
    same = torch.tensor([-1.25, -3.0])
    assert trust_mask(same, same, "hard").tolist() == [1, 1]
    assert trust_mask(same, same - 0.5, "hard", threshold=-0.5).tolist() == [1, 1]
    assert trust_mask(same, same, "expected").tolist() == [1, 1]


def test_draws_are_those_of_the_generator():
    student, teacher, *_ = tokens(4)

    def draw(seed):
        return trust_mask(student, teacher, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert any(not torch.equal(draw(1), draw(seed)) for seed in range(2, 6))
    assert set(draw(1).unique().tolist()) == {0.0, 1.0}
    before = torch.get_rng_state()
    draw(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ratio", [0.02, 0.5, 0.9])
def test_draws_have_the_frequency_of_the_ratio(ratio):
    n = 40_000
    student = torch.full((n,), -1.0)
    drawn = trust_mask(student, student + math.log(ratio), generator=torch.Generator().manual_seed(5))
    assert abs(float(drawn.mean()) - ratio) < 4 * math.sqrt(ratio * (1 - ratio) / n)


def test_a_token_that_the_teacher_likes_better_is_always_inside():
    student = torch.full((40_000,), -1.0)
    for more in (0.0, 1e-6, 0.9):
        assert trust_mask(student, student + more, generator=torch.Generator().manual_seed(6)).all()
    impossible = torch.full_like(student, -INF)
    assert not trust_mask(student, impossible, generator=torch.Generator().manual_seed(7)).any()


def test_a_trust_mask_has_no_gradient():
    student = torch.full((4,), -1.0, requires_grad=True)
    for mode in ("bernoulli", "expected", "hard"):
        found = trust_mask(student, student.detach() - 0.1, mode)
        assert not found.requires_grad
        assert found.dtype == torch.float32


def test_trust_masks_that_cannot_be_drawn_are_refused():
    ones = -torch.ones(2, 3)
    with pytest.raises(InputError, match="mode must be one of bernoulli, expected, hard, got 'soft'"):
        trust_mask(ones, ones, "soft")
    with pytest.raises(InputError, match=r"teacher_log_probs must be \(2, 3\) as student_log_probs are"):
        trust_mask(ones, ones[:, :1])


@pytest.mark.parametrize("mode", ["bernoulli", "expected", "hard"])
@pytest.mark.parametrize("side", [0, 1])
def test_trust_in_what_is_no_log_probability_is_refused(mode, side):
    name = ("student_log_probs", "teacher_log_probs")[side]
    for value, message in ((NAN, "got nan in 1 places"), (0.5, "of at most 0, got 0.5")):
        sides = [torch.full((2, 3), -1.0) for _ in range(2)]
        sides[side][1, 2] = value
        with pytest.raises(InputError, match=f"{name} must be .*{message}, the first at batch 1, token 2"):
            trust_mask(*sides, mode)


def test_a_student_that_finds_the_teachers_tokens_impossible_is_refused():
    _, sides, named = given(tokens(12))
    named["mask"] = torch.ones(SHAPE)
    own = named["student_top_log_probs"].detach().clone()
    own[2, 3, 1] = -INF
    named["student_top_log_probs"] = own
    message = (
        "student_top_log_probs must be finite where top_log_probs are, got -inf at batch 2, token 3, rank 1"
    )
    with pytest.raises(InputError, match=message):
        tropd_loss(*sides, **named)
    # Nothing is wrong where the teacher finds the token impossible too.
    named["top_log_probs"] = named["top_log_probs"].clone()
    named["top_log_probs"][2, 3, 1] = -INF
    for tail in ("none", "renormalize", "bucket"):
        assert tropd_loss(*sides, **named, tail=tail).isfinite()


def test_a_prefix_is_whole():
    _, sides, named = given(tokens(12))
    named["mask"] = torch.ones(SHAPE)
    named["prefix_mask"] = torch.zeros(SHAPE)
    named["prefix_mask"][0, 1] = 0.5
    with pytest.raises(InputError, match=r"prefix_mask must be bool .* got 0.5 at batch 0, token 1"):
        tropd_loss(*sides, **named)


def test_prefixes_have_the_lengths_of_the_paper():
    assert [prefix_length(step, 200, 8096) for step in (0, 100, 200)] == [8096, 4048, 0]
    assert prefix_length(500, 200, 8096) == 0
    assert prefix_length(0, 1, 0) == 0


@pytest.mark.parametrize(("total", "longest"), [(1, 5), (7, 3), (30, 16), (200, 8096), (1000, 1)])
def test_prefixes_become_shorter(total, longest):
    lengths = [prefix_length(step, total, longest) for step in range(total + 3)]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[total]) == (longest, 0)
    assert lengths == [reference.prefix_length(step, total, longest) for step in range(total + 3)]


@pytest.mark.parametrize("numbers", [(-1, 10, 5), (0, 0, 5), (0, 10, -1)])
def test_a_schedule_of_no_steps_is_refused(numbers):
    with pytest.raises(InputError, match="step and max_length must be at least 0 and total_steps at least 1"):
        prefix_length(*numbers)


@pytest.mark.parametrize("cap", [1.0, 2.0, 1e9])
def test_importance_weights_are_ratios_up_to_a_cap(cap):
    student, sampled, *_ = tokens(0)
    student.requires_grad_()
    found = importance_weights(student, sampled, cap)
    own, other = arrays(student.detach(), sampled)
    np.testing.assert_allclose(found.numpy(), np.minimum(np.exp(own - other), cap), rtol=1e-5)
    assert not found.requires_grad
    assert torch.equal(importance_weights(student, student, cap), torch.ones(SHAPE))


def test_importance_weights_refuse_other_shapes_and_caps():
    student, sampled, *_ = tokens(0)
    with pytest.raises(InputError, match=r"sampled_log_probs must be \(3, 7\) as student_log_probs are"):
        importance_weights(student, sampled[:2], 2.0)
    for cap in (0.9, NAN):
        with pytest.raises(InputError, match="cap must be at least 1, got"):
            importance_weights(student, sampled, cap)
