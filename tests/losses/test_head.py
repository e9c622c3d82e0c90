"""Losses from hidden states equal those from logits, a few rows at a time, and never make all logits."""

import pytest
import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from petkit.errors import InputError
from petkit.losses import head, head_divergence, head_log_probs
from petkit.losses.head import chunks
from petkit.ops.divergence import divergence
from petkit.ops.selected_log_probs import selected_log_probs

NAN = float("nan")
TOKENS, WIDTH, VOCAB, K = (3, 5), 8, 41, 3


@pytest.fixture(params=[1, 3 * VOCAB * 4, 1 << 30], ids=["row", "rows", "all"])
def chunk_bytes(request, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", request.param)


def inputs(seed, dtype=torch.float32, width=WIDTH, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*TOKENS, width), (VOCAB, width), (VOCAB,))
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


def picked(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (*TOKENS, K), generator=generator)
    return ids, torch.rand(TOKENS, generator=generator) < 0.6


def upstream(shape):
    return torch.linspace(-1, 2, shape.numel()).reshape(shape)


def leaves(tensors, dtype=None):
    return [one.detach().clone().to(dtype or one.dtype).requires_grad_() for one in tensors]


def slopes(value, tensors):
    (value * upstream(value.shape).to(value.dtype)).sum().backward()
    return [one.grad for one in tensors]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("chunk_bytes")
def test_log_probs_and_gradients_are_those_of_float64(masked, temperature, biased):
    ids, mask = picked(1)
    found, exact = leaves(inputs(2)), leaves(inputs(2), torch.float64)
    bias = found[2] if biased else None
    given = mask if masked else None
    result = head_log_probs(found[0], found[1], ids, bias, given, temperature)
    logits = linear(exact[0], exact[1], exact[2] if biased else None) / temperature
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    wanted = log_p.gather(-1, ids)
    if masked:
        wanted, entropy = wanted * mask[..., None], entropy * mask
    torch.testing.assert_close(result.log_probs.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    assert not result.entropy.requires_grad
    used = 3 if biased else 2
    for own, right in zip(slopes(result.log_probs, found[:used]), slopes(wanted, exact[:used]), strict=True):
        torch.testing.assert_close(own.double(), right, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("chunk_bytes")
def test_divergences_and_gradients_are_those_of_the_unfused_operator(masked, beta, biased):
    _, mask = picked(3)
    given = mask if masked else None
    teacher = inputs(4, width=6)
    found, exact = leaves(inputs(5)), leaves(inputs(5), torch.float64)
    biases = {"student_bias": found[2], "teacher_bias": teacher[2]} if biased else {}
    result = head_divergence(*found[:2], *teacher[:2], beta, given, 1.7, **biases)
    other = linear(*teacher[:2], teacher[2] if biased else None)
    logits = linear(*exact[:2], exact[2] if biased else None).float()
    wanted = divergence(logits, other, beta, given, 1.7)
    for own, right in zip(result, wanted, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-4, atol=2e-5)
    assert not result.forward_kl.requires_grad
    used = 3 if biased else 2
    for own, right in zip(slopes(result.loss, found[:used]), slopes(wanted.loss, exact[:used]), strict=True):
        torch.testing.assert_close(own.double(), right, rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("chunk_bytes")
def test_bfloat16_equals_the_unfused_operator():
    ids, mask = picked(6)
    found, plain = leaves(inputs(7, torch.bfloat16)), leaves(inputs(7, torch.bfloat16))
    result = head_log_probs(found[0], found[1], ids, found[2], mask)
    wanted = selected_log_probs(linear(*plain), ids, mask)
    torch.testing.assert_close(result.log_probs, wanted.log_probs, rtol=1e-2, atol=3e-2)
    pairs = zip(slopes(result.log_probs, found), slopes(wanted.log_probs, plain), strict=True)
    for own, right in pairs:
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), right.float(), rtol=5e-2, atol=0.15)


def test_a_weights_gradient_is_added_up_in_float32(monkeypatch):
    """Of hundreds of small parts, added up in bfloat16, the last ones would be lost."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 1)
    rows = 512
    hidden = torch.ones(rows, 1, dtype=torch.bfloat16)
    weight = torch.zeros(4, 1, dtype=torch.bfloat16, requires_grad=True)
    head_log_probs(hidden, weight, torch.zeros(rows, 1, dtype=torch.long)).log_probs.sum().backward()
    assert weight.grad[:, 0].tolist() == [0.75 * rows, *[-0.25 * rows] * 3]


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_makes_logits_as_a_linear_layer_would(inside):
    ids, _ = picked(8)
    found, plain = leaves(inputs(9)), leaves(inputs(9))
    with torch.autocast("cpu", torch.bfloat16):
        result = head_log_probs(found[0], found[1], ids, found[2])
        wanted = selected_log_probs(linear(*plain), ids)
        torch.testing.assert_close(result.log_probs, wanted.log_probs, rtol=1e-2, atol=3e-2)
        if inside:
            own = slopes(result.log_probs, found)
    if not inside:
        own = slopes(result.log_probs, found)
    for mine, right in zip(own, slopes(wanted.log_probs, plain), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, right, rtol=5e-2, atol=0.15)


@pytest.mark.parametrize("teachers", [torch.float32, torch.bfloat16])
def test_autocast_treats_both_heads_alike(teachers):
    hidden, weight, bias = inputs(10)
    with torch.autocast("cpu", torch.bfloat16):
        leaf = hidden.clone().requires_grad_()
        found = head_divergence(
            leaf,
            weight,
            hidden.to(teachers),
            weight.to(teachers),
            student_bias=bias,
            teacher_bias=bias.to(teachers),
        )
    assert found.loss.abs().max() < 1e-6
    found.loss.sum().backward()
    assert leaf.grad.abs().max() < 1e-3


@pytest.mark.usefixtures("chunk_bytes")
def test_what_is_behind_a_mask_does_not_matter():
    ids, mask = picked(11)
    hidden, weight, bias = inputs(12)
    other = hidden * 2
    results = []
    for spoil in (False, True):
        if spoil:
            hidden[~mask], other[~mask], ids[~mask] = NAN, NAN, -7
        tensors = leaves((hidden, weight, bias))
        first = head_log_probs(*tensors[:2], ids, tensors[2], mask)
        second = head_divergence(*tensors[:2], other, weight, 0.5, mask, student_bias=tensors[2])
        (first.log_probs.sum() + second.loss.sum()).backward()
        assert (first.log_probs[~mask] == 0).all()
        assert (first.entropy[~mask] == 0).all()
        assert all((part[~mask] == 0).all() for part in second)
        assert (tensors[0].grad[~mask] == 0).all()
        results.append([first.log_probs, second.loss, *(one.grad for one in tensors)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("rows", [(0,), (3, 0), (2, 3)])
def test_no_rows_have_no_gradient(rows):
    tensors = leaves((torch.randn(*rows, WIDTH), torch.randn(VOCAB, WIDTH)))
    mask = torch.zeros(rows)
    ids = torch.zeros(*rows, K, dtype=torch.long)
    first = head_log_probs(*tensors, ids, None, mask)
    second = head_divergence(*tensors, torch.randn(*rows, 4), torch.randn(VOCAB, 4), mask=mask)
    assert first.log_probs.shape == (*rows, K)
    assert second.loss.shape == first.entropy.shape == rows
    (first.log_probs.sum() + second.loss.sum()).backward()
    assert all((one.grad == 0).all() for one in tensors)
    assert tensors[1].grad.shape == (VOCAB, WIDTH)


def test_only_what_learns_gets_a_gradient():
    ids, _ = picked(13)
    hidden, weight, bias = inputs(14)
    for number in range(3):
        tensors = [one.clone() for one in (hidden, weight, bias)]
        tensors[number].requires_grad_()
        head_log_probs(tensors[0], tensors[1], ids, tensors[2]).log_probs.sum().backward()
        assert [one.grad is not None for one in tensors] == [place == number for place in range(3)]
    frozen = head_log_probs(hidden, weight, ids, bias)
    assert not frozen.log_probs.requires_grad


def test_the_teachers_side_is_constant():
    student, teacher = leaves(inputs(15)), leaves(inputs(16))
    head_divergence(*student[:2], *teacher[:2], teacher_bias=teacher[2]).loss.sum().backward()
    assert all(one.grad is None for one in teacher)


def test_a_backward_pass_may_be_repeated():
    ids, _ = picked(17)
    tensors = leaves(inputs(18)[:2])
    total = head_log_probs(*tensors, ids).log_probs.sum()
    total.backward(retain_graph=True)
    first = tensors[0].grad.clone()
    total.backward()
    torch.testing.assert_close(tensors[0].grad, 2 * first)


def test_a_second_derivative_is_refused():
    ids, _ = picked(19)
    hidden, weight, _ = inputs(20)
    for function in (
        lambda leaf: head_log_probs(leaf, weight, ids).log_probs,
        lambda leaf: head_divergence(leaf, weight, hidden * 2, weight).loss,
    ):
        leaf = hidden.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
        with pytest.raises(InputError, match="losses through a head can be differentiated once"):
            slope.square().sum().backward()


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor made has."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.numel())
        return made


def test_logits_of_all_tokens_are_never_made(monkeypatch):
    tokens, width, vocab, chunk = 200, 4, 500, 10
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk * vocab * 4)
    hidden, weight = leaves((torch.randn(tokens, width), torch.randn(vocab, width)))
    ids = torch.randint(vocab, (tokens, K))
    with Largest() as seen:
        head_log_probs(hidden, weight, ids).log_probs.sum().backward()
        head_divergence(hidden, weight, torch.randn(tokens, 3), torch.randn(vocab, 3)).loss.sum().backward()
    assert seen.most == chunk * vocab
    with Largest() as seen:
        selected_log_probs(linear(hidden, weight), ids)
    assert seen.most >= tokens * vocab


def test_chunks_cover_the_rows():
    like = torch.empty(0)
    assert list(chunks(0, 7, like)) == [slice(0, 0)]
    for rows in (1, 5, 100):
        for size in (1, 28, 28 * 3, 10**9):
            head_bytes, head.CHUNK_BYTES = head.CHUNK_BYTES, size
            try:
                found = list(chunks(rows, 7, like))
            finally:
                head.CHUNK_BYTES = head_bytes
            assert [row for at in found for row in range(at.start, at.stop)] == list(range(rows))
            assert max(at.stop - at.start for at in found) == min(rows, max(1, size // 28))


def test_what_cannot_be_used_is_refused():
    hidden, weight, bias = inputs(21)
    ids, _ = picked(22)
    for arguments, message in (
        ((hidden, weight[:, :-1], ids), r"the head's weight must be \(vocab, 8\) for hidden states"),
        ((hidden, weight[0], ids), r"the head's weight must be \(vocab, 8\)"),
        ((hidden, weight, ids, bias[:-1]), r"the head's bias must be \(41,\), got \(40,\)"),
        ((hidden, weight, ids[:1]), r"token_ids must be \(3, 5\) and one dimension more, got \(1, 5, 3\)"),
        ((hidden, weight, ids + VOCAB), "token_ids must lie between 0 and 40"),
        ((hidden, weight, ids, None, torch.ones(5, 3)), r"mask must be \(3, 5\) for these hidden states"),
        ((hidden, weight, ids, None, None, 0.0), "temperature"),
        (
            (hidden.bfloat16(), weight, ids),
            "of a head must be of one dtype, got torch.bfloat16, torch.float32",
        ),
    ):
        with pytest.raises(InputError, match=message):
            head_log_probs(*arguments)
    for arguments, message in (
        (
            (hidden, weight, hidden[:2], weight),
            r"must be for \(3, 5\) tokens and a vocabulary of 41, got \(2, 5\)",
        ),
        ((hidden, weight, hidden, weight[:-1]), r"a vocabulary of 41, got \(3, 5\) and 40"),
        ((hidden, weight, hidden, weight, 1.5), "beta must be a number between 0 and 1, got 1.5"),
        ((hidden, weight, hidden.bfloat16(), weight), "of one dtype"),
    ):
        with pytest.raises(InputError, match=message):
            head_divergence(*arguments)
