import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import AdapterBank, adapter_bank, lowbit_codebook, lowbit_dequantize, lowbit_quantize
from tests.reference import adapter_bank as reference
from tests.reference.tolerance import sum_error
from tests.threads import threads

BITS = (1, 2, 4, 8)
# (tokens, adapters, hidden, in, out)
SHAPES = [
    (0, 3, 4, 16, 16),
    (1, 1, 1, 2, 2),
    (5, 3, 8, 63, 65),
    (40, 7, 8, 130, 96),
    (33, 2, 33, 48, 17),
    (300, 3, 5, 40, 24),
]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(adapters, hidden, columns, out, bits, activation="relu", seed=0):
    """A bank and the dequantised weights in it."""
    down, up = normal(adapters, hidden, columns, seed=seed), normal(adapters, out, hidden, seed=seed + 1)
    scaling = torch.linspace(0.5, 2.0, adapters)
    bank = AdapterBank.from_dense(down, up, scaling, bits, activation=activation)
    wide = [
        np.stack(
            [lowbit_dequantize(*lowbit_quantize(m, bits), bits, m.shape[1]).double().numpy() for m in stack]
        )
        for stack in (down, up)
    ]
    return bank, wide[0], wide[1], scaling.double().numpy()


def random_ids(tokens, adapters, seed=0):
    return torch.randint(-1, adapters, (tokens,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_matches_the_reference(kernels, bits, shape, activation):
    tokens, adapters, hidden, columns, out = shape
    bank, down, up, scaling = make(adapters, hidden, columns, out, bits, activation)
    x, ids = normal(tokens, columns, seed=9), random_ids(tokens, adapters)
    y = adapter_bank(x, ids, bank)
    exact, magnitude = reference.adapter_bank(
        x.double().numpy(), ids.numpy(), down, up, scaling, activation == "relu"
    )
    assert y.shape == (tokens, out)
    assert sum_error(y.double().numpy(), exact, magnitude, "float32") <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", BITS)
def test_half_precision(kernels, bits, dtype):
    bank, down, up, scaling = make(4, 8, 70, 50, bits)
    x, ids = normal(30, 70, seed=9).to(dtype), random_ids(30, 4)
    y = adapter_bank(x, ids, bank)
    exact, magnitude = reference.adapter_bank(x.double().numpy(), ids.numpy(), down, up, scaling, relu=True)
    assert y.dtype == dtype
    assert sum_error(y.double().numpy(), exact, magnitude, str(dtype)[6:]) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", BITS)
def test_adding_in_place(kernels, bits, dtype):
    bank, *_ = make(4, 33, 70, 50, bits)
    x, ids = normal(30, 70, seed=9).to(dtype), random_ids(30, 4)
    base = normal(30, 50, seed=3).to(dtype)
    target = base.clone()
    assert adapter_bank(x, ids, bank, add_to=target) is target
    wide = adapter_bank(x.float(), ids, bank)
    expected = (base.float() + wide).to(dtype)
    # float32 results may differ by the order of additions, others by one rounding on top.
    tolerance = max(1e-5, torch.finfo(dtype).eps)
    torch.testing.assert_close(target, expected, rtol=tolerance, atol=tolerance * wide.abs().max().item())
    assert torch.equal(target[ids == -1], base[ids == -1])


def test_adding_to_a_view(kernels):
    bank, *_ = make(3, 4, 20, 30, 1)
    x, ids, base = normal(12, 20), random_ids(12, 3), normal(30, 12)
    target = base.clone().T
    adapter_bank(x, ids, bank, add_to=target)
    torch.testing.assert_close(target, base.T + adapter_bank(x, ids, bank), rtol=1e-5, atol=1e-5)


def test_adding_opcheck(kernels):
    bank, *_ = make(3, 4, 19, 22, 1)
    arguments = (normal(4, 19), torch.tensor([0, 2, -1, 1]), bank.down, bank.up, bank.constants)
    torch.library.opcheck(
        torch.ops.petkit.adapter_bank_add_.default, (normal(4, 22), *arguments, lowbit_codebook(1), 1, True)
    )


def test_no_adapter_gives_zeros(kernels):
    bank, *_ = make(3, 4, 20, 30, 1)
    y = adapter_bank(normal(6, 20), torch.full((6,), -1), bank)
    assert torch.equal(y, torch.zeros(6, 30))


def test_many_tokens_of_one_adapter(kernels):
    bank, down, up, scaling = make(3, 8, 24, 24, 1)
    x, ids = normal(65537, 24), torch.full((65537,), 1, dtype=torch.int32)
    y = adapter_bank(x, ids, bank)
    hidden = np.maximum(x.double().numpy() @ down[1].T, 0)
    magnitude = np.abs(x.double().numpy()) @ np.abs(down[1]).T @ np.abs(up[1]).T * scaling[1]
    assert sum_error(y.double().numpy(), hidden @ up[1].T * scaling[1], magnitude, "float32") <= 1


def test_inputs_that_do_not_lie_in_order(kernels):
    bank, *_ = make(3, 4, 20, 30, 2)
    x, ids = normal(20, 14).T, random_ids(28, 3)[::2]
    assert torch.equal(adapter_bank(x, ids, bank), adapter_bank(x.contiguous(), ids.contiguous(), bank))


@given(
    bits=st.sampled_from(BITS),
    tokens=st.integers(1, 30),
    adapters=st.integers(1, 6),
    seed=st.integers(0, 9999),
)
def test_permuting_the_rows_permutes_the_result(bits, tokens, adapters, seed):
    bank, *_ = make(adapters, 3, 21, 18, bits)
    x, ids = normal(tokens, 21, seed=seed), random_ids(tokens, adapters, seed=seed)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    # Which rows share a block changes with the order, and with it the order of the additions.
    torch.testing.assert_close(
        adapter_bank(x[order], ids[order], bank), adapter_bank(x, ids, bank)[order], rtol=1e-5, atol=1e-4
    )


@given(bits=st.sampled_from(BITS), seed=st.integers(0, 9999), hidden=st.integers(1, 9))
def test_a_mixed_batch_equals_one_adapter_at_a_time(bits, seed, hidden):
    bank, *_ = make(4, hidden, 37, 19, bits)
    x, ids = normal(25, 37, seed=seed), random_ids(25, 4, seed=seed)
    mixed = adapter_bank(x, ids, bank)
    for index in range(-1, 4):
        alone = adapter_bank(x[ids == index], ids[ids == index], bank)
        torch.testing.assert_close(mixed[ids == index], alone, rtol=1e-5, atol=1e-4)


def test_the_number_of_threads_does_not_matter(kernels):
    bank, *_ = make(9, 8, 64, 64, 1)
    x, ids = normal(500, 64), random_ids(500, 9)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(adapter_bank(x, ids, bank))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if kernels == "torch" else {"rtol": 0, "atol": 0}
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, **tolerance)


@pytest.mark.parametrize("bits", BITS)
def test_opcheck(kernels, bits):
    bank, *_ = make(3, 4, 19, 22, bits)
    ids = torch.tensor([0, 2, -1, 1])
    arguments = (
        normal(4, 19),
        ids,
        bank.down,
        bank.up,
        bank.constants,
        lowbit_codebook(bits),
        bits,
        22,
        True,
    )
    torch.library.opcheck(torch.ops.petkit.adapter_bank.default, arguments)


def test_a_gradient_is_refused_not_dropped(kernels):
    bank, *_ = make(2, 4, 12, 12, 1)
    y = adapter_bank(normal(3, 12).requires_grad_(), torch.tensor([0, 1, 0]), bank)
    with pytest.raises(InputError, match="adapter_bank has no gradient"):
        y.sum().backward()


def test_slots_are_set_cleared_and_resized(kernels):
    full, *_ = make(4, 5, 33, 21, 2)
    x, ids = normal(12, 33), random_ids(12, 4)
    bank = AdapterBank.empty(2, 5, 33, 21, 2)
    assert (bank.n, bank.hidden, bank.in_features, bank.out_features, bank.bits) == (2, 5, 33, 21, 2)
    assert torch.equal(adapter_bank(x, torch.zeros(12, dtype=torch.int64), bank), torch.zeros(12, 21))
    bank.resize(4)
    down, up = normal(4, 5, 33), normal(4, 21, 5, seed=1)
    for index, scaling in enumerate(torch.linspace(0.5, 2.0, 4)):
        bank.set(index, *lowbit_quantize(down[index], 2), *lowbit_quantize(up[index], 2), scaling)
    assert torch.equal(adapter_bank(x, ids, bank), adapter_bank(x, ids, full))
    bank.clear(1)
    expected = adapter_bank(x, ids, full)
    expected[ids == 1] = 0
    assert torch.equal(adapter_bank(x, ids, bank), expected)
    bank.resize(1)
    assert (bank.n, bank.nbytes) == (1, bank.down.numel() + bank.up.numel() + 20)


def test_many_slots_are_set_at_once():
    full, *_ = make(3, 5, 33, 21, 1)
    bank = AdapterBank.empty(5, 5, 33, 21, 1)
    quantized = [
        (*lowbit_quantize(down, 1), *lowbit_quantize(up, 1))
        for down, up in zip(normal(3, 5, 33), normal(3, 21, 5, seed=1), strict=True)
    ]
    scaling = torch.linspace(0.5, 2.0, 3)
    constants = torch.stack(
        [torch.stack([q[1], q[2], q[4], q[5], s]) for q, s in zip(quantized, scaling, strict=True)]
    )
    bank.set_many(
        [4, 0, 2], torch.stack([q[0] for q in quantized]), torch.stack([q[3] for q in quantized]), constants
    )
    for name in ("down", "up", "constants"):
        assert torch.equal(getattr(bank, name)[[4, 0, 2]], getattr(full, name))


def test_a_bank_is_small():
    bank = AdapterBank.empty(256, 8, 768, 768, 1)
    assert bank.nbytes * 25 <= 256 * 2 * 8 * 768 * 4


def test_refusals():
    bank, *_ = make(3, 4, 20, 30, 1)
    x, ids = normal(2, 20), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"adapter_ids must lie between -1 and 2, got 3"):
        adapter_bank(x, torch.tensor([0, 3]), bank)
    with pytest.raises(InputError, match=r"adapter_ids must lie between -1 and 2, got -2"):
        adapter_bank(x, torch.tensor([0, -2]), bank)
    with pytest.raises(
        InputError, match=r"x and adapter_ids must be \(tokens, 20\) and \(tokens,\), got \(2, 19\)"
    ):
        adapter_bank(x[:, 1:], ids, bank)
    with pytest.raises(InputError, match="bank, the third argument, must be an AdapterBank, got Tensor"):
        adapter_bank(x, ids, ids)
    with pytest.raises(InputError, match="adapter_ids must be a tensor, got list"):
        adapter_bank(x, [0, 1], bank)
    with pytest.raises(InputError, match=r"adapter_ids must be integers, got torch\.float32"):
        adapter_bank(x, ids.float(), bank)
    with pytest.raises(InputError, match=r"x must be float32, bfloat16 or float16, got torch\.int64"):
        adapter_bank(x.long(), ids, bank)
    with pytest.raises(
        InputError, match=r"add_to must be torch\.float32 \(2, 30\), got torch\.float32 \(2, 29\)"
    ):
        adapter_bank(x, ids, bank, add_to=normal(2, 29))
    with pytest.raises(InputError, match="adapter_bank has no gradient"):
        adapter_bank(x.requires_grad_(), ids, bank, add_to=normal(2, 30))
    with pytest.raises(InputError, match=r"index must be a slot of this bank, 0 to 2, got \[3\]"):
        bank.clear(3)
    with pytest.raises(InputError, match="activation must be relu or identity, got 'gelu'"):
        AdapterBank.empty(1, 2, 3, 4, 1, activation="gelu")
    with pytest.raises(
        InputError, match=r"down, up and scaling must be .* got \(1, 2, 3\), \(1, 4, 3\) and \(1,\)"
    ):
        AdapterBank.from_dense(normal(1, 2, 3), normal(1, 4, 3), torch.ones(1), 1)
    wrong = torch.zeros((1, 4, 9), dtype=torch.uint8)
    with pytest.raises(InputError, match=r"down_packed must be \(1, 4, 3\) for this bank, got \(1, 4, 9\)"):
        bank.set_many([0], wrong, torch.zeros((1, 30, 1), dtype=torch.uint8), torch.ones(1, 5))
    with pytest.raises(InputError, match=r"constants .* must be finite"):
        bank.set_many(
            [0], wrong[..., :3], torch.zeros((1, 30, 1), dtype=torch.uint8), torch.full((1, 5), torch.nan)
        )
