"""The forward KL on the teacher's likeliest tokens, with each of its tails, against plain float64."""

import pytest
import torch

from petkit.errors import InputError
from petkit.losses import forward_kl, jsd, reverse_kl, topk_forward_kl
from petkit.losses.top_k import check_log_probs, top_k_terms

NAN, INF = float("nan"), float("inf")
SHAPE = (2, 5, 29)
TAILS = ("none", "renormalize", "bucket")


def both(seed, k, spread=2.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(SHAPE, generator=generator) for _ in range(2))
    top = torch.log_softmax(teacher, -1).topk(k, -1)
    return student.to(dtype), teacher, top.indices, top.values


def some(seed):
    return torch.rand(SHAPE[:2], generator=torch.Generator().manual_seed(seed)) < 0.6


def plain(student, ids, top, mask, tail, temperature):
    """The definitions, in float64."""
    log_q = torch.log_softmax(student.double() / temperature, -1).gather(-1, ids)
    log_p = top.double()
    p, q = log_p.exp(), log_q.exp()
    if tail == "renormalize":
        log_p, log_q = log_p - p.sum(-1, keepdim=True).log(), log_q - q.sum(-1, keepdim=True).log()
        p = log_p.exp()
    rows = (p * (log_p - log_q)).sum(-1)
    if tail == "bucket":
        rest_p, rest_q = 1 - p.sum(-1), 1 - q.sum(-1)
        rows = rows + rest_p * (rest_p / rest_q).log()
    return rows.mean() if mask is None else rows[mask].mean()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("k", [1, 4, 20])
@pytest.mark.parametrize(("masked", "temperature"), [(False, 1.0), (True, 2.5)])
def test_values_and_gradients_are_those_of_float64(tail, k, masked, temperature):
    student, _, ids, top = both(1, k)
    mask = some(2) if masked else None
    leaf, exact = student.clone().requires_grad_(), student.double().requires_grad_()
    value = topk_forward_kl(leaf, ids, top, mask, tail, temperature)
    wanted = plain(exact, ids, top, mask, tail, temperature)
    value.backward()
    wanted.backward()
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0, 30.0])
@pytest.mark.parametrize("k", [1, 4, 20, 28])
def test_a_bucket_lies_between_nothing_and_the_true_divergence(seed, spread, k):
    student, teacher, ids, top = both(seed, k, spread)
    own = torch.log_softmax(student.double(), -1)
    true = (teacher.double().softmax(-1) * (torch.log_softmax(teacher.double(), -1) - own)).sum(-1)
    found = top_k_terms(own.gather(-1, ids).float(), top, "bucket").double()
    assert (found >= -2e-6).all()
    assert (found <= true + 1e-5 * (1 + true)).all()


def test_a_bucket_of_a_sure_student_is_no_more_than_the_true_divergence():
    # 1e-5 is left beside one token; and 1e-20, which float32 does not tell from 0.
    for left in (1e-5, 1e-20):
        own = torch.tensor([[1 - left, left]], dtype=torch.float64).log()
        teacher = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
        true = float((teacher.exp() * (teacher - own)).sum())
        leaf = own[:, :1].float().requires_grad_()
        value = top_k_terms(leaf, teacher[:, :1].float(), "bucket")
        value.sum().backward()
        assert 0 < float(value.detach()) <= true + 1e-3
        # It still wants the student less sure, and says so with a number that float32 can bear.
        assert 0 < float(leaf.grad) < 1e7


def test_a_bucket_of_all_but_one_token_is_the_whole_divergence():
    student, teacher, ids, top = both(3, SHAPE[-1] - 1)
    torch.testing.assert_close(
        topk_forward_kl(student, ids, top, tail="bucket"), forward_kl(student, teacher), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("tail", TAILS)
def test_all_tokens_are_the_whole_divergence(tail):
    student, teacher, ids, top = both(4, SHAPE[-1])
    value = topk_forward_kl(student, ids, top, tail=tail)
    torch.testing.assert_close(value, forward_kl(student, teacher), rtol=1e-4, atol=1e-5)


def test_no_tail_may_be_negative_and_renormalised_may_not():
    # The student has more on the one token than the teacher.
    own, teacher = torch.tensor([[0.9]]).log(), torch.tensor([[0.3]]).log()
    assert float(top_k_terms(own, teacher)) == pytest.approx(0.3 * float((teacher - own).sum()))
    assert float(top_k_terms(own, teacher)) < 0
    assert float(top_k_terms(own, teacher, "renormalize")) == 0
    assert float(top_k_terms(own, teacher, "bucket")) > 0


@pytest.mark.parametrize("tail", TAILS)
def test_tokens_that_the_teacher_finds_impossible_add_nothing(tail):
    own = torch.tensor([[0.2, 0.3, 0.1]]).log()
    teacher = torch.tensor([[0.5, 0.25, 0.0]]).log()
    leaf = own.clone().requires_grad_()
    value = top_k_terms(leaf, teacher, tail)
    value.sum().backward()
    assert value.isfinite().all()
    assert leaf.grad.isfinite().all()
    if tail == "none":
        torch.testing.assert_close(value.detach(), top_k_terms(own[:, :2], teacher[:, :2]))
    # Impossible for both.
    own[0, 2] = -INF
    leaf = own.clone().requires_grad_()
    top_k_terms(leaf, teacher, tail).sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("tail", TAILS)
def test_what_is_behind_a_mask_does_not_matter(tail):
    student, _, ids, top = both(5, 4)
    mask = some(6)
    clean = topk_forward_kl(student, ids, top, mask, tail)
    student[~mask], top[~mask], ids[~mask] = NAN, NAN, 10**6
    leaf = student.clone().requires_grad_()
    value = topk_forward_kl(leaf, ids, top, mask, tail)
    value.backward()
    assert torch.equal(value, clean)
    assert (leaf.grad[~mask] == 0).all()
    assert leaf.grad[mask].isfinite().all()


def test_no_gradient_reaches_the_teacher():
    own = torch.full((1, 2), -1.0, requires_grad=True)
    teacher = torch.full((1, 2), -1.5, requires_grad=True)
    for tail in TAILS:
        top_k_terms(own, teacher, tail).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(dtype):
    student, _, ids, top = both(7, 4, dtype=dtype)
    leaf = student.clone().requires_grad_()
    value = topk_forward_kl(leaf, ids, top)
    value.backward()
    assert (value.dtype, leaf.grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value.double(), plain(student, ids, top, None, "none", 1), rtol=1e-5, atol=0)


def test_a_gradient_may_take_the_place_of_the_logits():
    student, _, ids, top = both(8, 4)
    grads = []
    for overwrite in (False, True):
        leaf = student.clone().requires_grad_()
        topk_forward_kl(leaf * 1, ids, top, overwrite=overwrite).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_what_cannot_be_used_is_refused():
    student, _, ids, top = both(9, 4)
    for changes, message in (
        ({"tail": "rest"}, "tail must be one of none, renormalize, bucket, got 'rest'"),
        ({"mask": torch.zeros(2, 5)}, "at least one token that counts"),
        ({"mask": torch.ones(2, 4)}, r"mask must be \(2, 5\)"),
        ({"top_log_probs": top[..., :3]}, r"top_log_probs must be \(2, 5, 4\) as top_ids are"),
        ({"top_log_probs": top + 20}, "top_log_probs must be log-probabilities of at most 0, got "),
        ({"top_log_probs": top * NAN}, "top_log_probs must be log-probabilities, got nan in 40 places"),
        ({"top_ids": ids + 29}, r"top_ids must lie between 0 and 28, got \d+ at batch 0, token 0, rank 0"),
        (
            {"top_ids": ids.float()},
            r"top_ids must be integers \(2, 5\) and one dimension more for student_logits",
        ),
        ({"top_ids": ids[:1], "top_log_probs": top[:1]}, "top_ids must be integers"),
    ):
        arguments = {"student_logits": student, "top_ids": ids, "top_log_probs": top} | changes
        with pytest.raises(InputError, match=message):
            topk_forward_kl(**arguments)
    with pytest.raises(InputError, match=r"top_log_probs must be \(2, 5, 4\) as the student's are"):
        top_k_terms(top, top[..., :1])


def test_log_probabilities_are_checked():
    check_log_probs("x", torch.tensor([-INF, -1.0, 1e-6]))
    check_log_probs("x", torch.empty(0))
    check_log_probs("x", torch.zeros(2, requires_grad=True))
    for values in (torch.tensor([0.01]), torch.tensor([-1.0, NAN]), torch.tensor([INF])):
        with pytest.raises(InputError, match="x must be log-probabilities"):
            check_log_probs("x", values)


def test_an_id_twice_is_refused_where_it_counts():
    student, _, ids, top = both(9, 4)
    ids = ids.clone()
    ids[1, 3, 2] = ids[1, 3, 0]
    with pytest.raises(
        InputError,
        match=f"top_ids must name 4 different tokens, got {int(ids[1, 3, 0])} twice at batch 1, token 3",
    ):
        topk_forward_kl(student, ids, top)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3] = False
    assert topk_forward_kl(student, ids, top, mask).isfinite()


@pytest.mark.parametrize("tail", TAILS)
def test_a_teacher_without_any_likely_token_is_refused_where_it_counts(tail):
    student, _, ids, top = both(9, 4)
    top[1, 3, 1:] = -INF
    assert topk_forward_kl(student, ids, top, tail=tail).isfinite()
    top[1, 3] = -INF
    with pytest.raises(
        InputError,
        match=r"top_log_probs must be finite, .* got nothing but -inf at batch 1, token 3",
    ):
        topk_forward_kl(student, ids, top, tail=tail)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3] = False
    assert topk_forward_kl(student, ids, top, mask, tail).isfinite()


@pytest.mark.parametrize("tail", TAILS)
def test_tokens_likelier_than_certain_are_refused_where_they_count(tail):
    student, _, ids, top = both(9, 4)
    top[1, 3] = -0.5
    with pytest.raises(
        InputError, match=r"of probabilities whose sum is at most 1, got 2\.43 at batch 1, token 3"
    ):
        topk_forward_kl(student, ids, top, tail=tail)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3] = False
    assert topk_forward_kl(student, ids, top, mask, tail).isfinite()


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1.0005), (torch.bfloat16, 1.2), (torch.float16, 1.02)]
)
def test_a_sum_may_be_above_1_by_the_rounding_of_its_dtype(dtype, most):
    student, _, ids, _ = both(9, 4)
    top = torch.full((2, 5, 4), most / 4).log().to(dtype)
    assert topk_forward_kl(student, ids, top).isfinite()
    with pytest.raises(InputError, match=r"of probabilities whose sum is at most 1, got 1\.\d+ at batch 0"):
        topk_forward_kl(student, ids, top + {torch.float32: 0.01}.get(dtype, 0.1))


def test_no_token_at_all_is_refused():
    student, _, ids, top = both(9, 4)
    with pytest.raises(InputError, match="top_ids must name at least one token at each position, got none"):
        topk_forward_kl(student, ids[..., :0], top[..., :0])


@pytest.mark.parametrize("masked", [False, True])
def test_losses_are_one_graph_when_compiled(masked):
    student, teacher, ids, top = both(9, 4)
    mask = some(2) if masked else None

    def losses(logits):
        return torch.stack(
            [
                topk_forward_kl(logits, ids, top, mask, "bucket"),
                *(one(logits, teacher, mask=mask) for one in (forward_kl, reverse_kl, jsd)),
            ]
        )

    whole = torch.compile(losses, fullgraph=True, backend="aot_eager")
    own, wanted = student.clone().requires_grad_(), student.clone().requires_grad_()
    found, expected = whole(own), losses(wanted)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(own.grad, wanted.grad)


@pytest.mark.parametrize("vocab", [3945, 32768])
def test_the_rounding_of_bfloat16_makes_no_sum_too_large(vocab):
    even = torch.zeros(1, 1, vocab).log_softmax(-1).bfloat16()
    scores = (10 * torch.randn(1, 1, vocab, generator=torch.Generator().manual_seed(0))).bfloat16()
    for top in (even, scores - scores.logsumexp(-1, keepdim=True)):
        assert topk_forward_kl(torch.zeros(1, 1, vocab), torch.arange(vocab)[None, None], top).isfinite()


def test_a_student_without_a_distribution_is_named():
    student, _, ids, top = both(9, 4)
    student = student.clone()
    student[0, 2, 7] = NAN
    with pytest.raises(InputError, match=r"student_logits must be finite, .* at batch 0, token 2"):
        topk_forward_kl(student, ids, top)


def test_the_place_of_what_is_no_log_probability_is_told():
    values = -torch.ones(2, 3, 4)
    values[1, 0, 2] = NAN
    with pytest.raises(InputError, match="got nan in 1 places, the first at batch 1, token 0, rank 2"):
        check_log_probs("x", values)
    values[1, 0, 2] = 0.5
    with pytest.raises(InputError, match=r"at most 0, got 0\.5, the first at batch 1, token 0, rank 2"):
        check_log_probs("x", values)
    kept = torch.ones(2, 3, dtype=torch.bool)
    kept[1, 0] = False
    check_log_probs("x", values, kept)
