"""The CUDA operators' host code, run on the emulator, against the same operators on the CPU.

The kernels themselves are judged by independent references in the other files; here it is about the order of
arguments, checks, allocations, strides and the choice of a kernel.
"""

import re
from pathlib import Path

import pytest
import torch

from petkit.ops import AdapterBank, adapter_bank, lowbit_codebook, lowbit_quantize
from petkit.ops.lowbit_dequantize import transpose_packed
from tests.cuda_emulator.support import BITS, DTYPES, normal
from tests.test_layout import WITHOUT_CUDA

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def assert_close(result, expected):
    assert result.dtype == expected.dtype
    bound = CLOSE[expected.dtype] * float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(result, expected, rtol=0, atol=bound)


def packed_weight(out, columns, bits):
    return (*lowbit_quantize(normal(out, columns), bits), lowbit_codebook(bits), bits)


def test_every_schema_has_a_cuda_implementation(call):
    call("lowbit_transpose", torch.zeros((1, 1, 1), dtype=torch.uint8), 1, 1)
    schemas = (Path(__file__).parents[2] / "cpp" / "library.cpp").read_text()
    names = set(re.findall(r"m\.def\(\s*\"(\w+)\(", schemas)) - WITHOUT_CUDA
    assert names
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"petkit_emulated::{name}", "CUDA"), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_quantize(call, bits, dtype):
    weight, levels = normal(9, 67, dtype=dtype), lowbit_codebook(bits)
    for given in (weight, weight.T):
        result = call("lowbit_quantize", given, levels, bits)
        for got, expected in zip(result, lowbit_quantize(given, bits), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_dequantize(call, bits, dtype):
    packed, shift, scale, levels, _ = packed_weight(9, 67, bits)
    arguments = (shift, scale, levels, bits, 67, getattr(torch, dtype))
    expected = torch.ops.petkit.lowbit_dequantize(packed, *arguments)
    assert torch.equal(call("lowbit_dequantize", packed, *arguments), expected)
    strided = torch.stack([packed, packed], -1)[..., 0]
    assert torch.equal(call("lowbit_dequantize", strided, *arguments), expected)


@pytest.mark.parametrize("bits", BITS)
def test_transpose(call, bits):
    packed = lowbit_quantize(normal(21, 13), bits)[0].view(3, 7, -1)
    assert torch.equal(call("lowbit_transpose", packed, bits, 13), transpose_packed(packed, bits, 13))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_fake_quantize(call, bits, dtype):
    weight, grad, levels = (
        normal(67, 9, dtype=dtype).T,
        normal(9, 67, seed=1, dtype=dtype),
        lowbit_codebook(bits),
    )
    result = call("lowbit_fake_quantize", weight, levels, bits, True)
    for got, expected in zip(
        result, torch.ops.petkit.lowbit_fake_quantize(weight, levels, bits, True), strict=True
    ):
        assert torch.equal(got, expected)
    arguments = (weight, *result[1:], levels, bits)
    for upstream in (grad, grad[:1, :1].expand(9, 67)):
        got = call("lowbit_fake_quantize_backward", upstream, *arguments)
        assert_close(got, torch.ops.petkit.lowbit_fake_quantize_backward(upstream, *arguments))


@pytest.mark.parametrize("rows", [0, 1, 5, 40])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_linear(call, bits, dtype, rows):
    weight = packed_weight(18, 67, bits)
    x, grad = normal(67, rows, dtype=dtype).T, normal(rows, 18, seed=1, dtype=dtype)
    assert_close(call("lowbit_linear", x, *weight), torch.ops.petkit.lowbit_linear(x, *weight))
    got = call("lowbit_linear_backward", grad, *weight, 67)
    assert_close(got, torch.ops.petkit.lowbit_linear_backward(grad, *weight, 67))


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_adapter_bank(call, bits, dtype, activation):
    down, up, scaling = normal(3, 5, 24), normal(3, 33, 5, seed=1), torch.tensor([0.5, 1, 2])
    bank = AdapterBank.from_dense(down, up, scaling, bits, activation=activation)
    x, ids = normal(24, 9, seed=2, dtype=dtype).T, torch.tensor([0, 0, -1, 2, 1, 1, 1, -1, 0])
    relu = activation == "relu"
    tensors = (bank.down, bank.up, bank.constants, lowbit_codebook(bits))
    assert_close(call("adapter_bank", x, ids, *tensors, bits, 33, relu), adapter_bank(x, ids, bank))


def test_many_tokens_share_blocks(call):
    bank = AdapterBank.from_dense(normal(2, 1, 8), normal(2, 8, 1, seed=1), torch.ones(2), 1)
    x, ids = normal(2049, 8, seed=2), torch.arange(2049) // 700 - 1
    tensors = (bank.down, bank.up, bank.constants, lowbit_codebook(1))
    assert_close(call("adapter_bank", x, ids, *tensors, 1, 8, True), adapter_bank(x, ids, bank))


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_token_statistics(call, dtype, chosen):
    logits = normal(67, 5, dtype=dtype).T
    ids = torch.tensor([3, 1, 66, 0, 9] if chosen else [], dtype=torch.int64)
    result = call("token_statistics", logits, ids, 4, 0.7)
    expected = torch.ops.petkit.token_statistics(logits, ids, 4, 0.7)
    for got, other in zip(result, expected, strict=True):
        assert got.shape == other.shape
        torch.testing.assert_close(got, other, rtol=1e-5, atol=1e-5)
    _, entropy, *_, maximum, log_sum = result
    grads = (normal(5, seed=2), normal(1, seed=3).expand(5), normal(5 if chosen else 0, seed=4))
    arguments = (logits, ids, maximum, log_sum, entropy, *grads, 0.7)
    got = call("token_statistics_backward", *arguments)
    assert_close(got, torch.ops.petkit.token_statistics_backward(*arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(2, 33)},
            r"packed must hold 5 bytes a row for 33 codes of 1 bits, got shape \(5, 3\)",
        ),
        ({"x": torch.zeros(17)}, r"x must have 2 dimensions, got shape \(17\)"),
        ({"x": torch.zeros(2, 17).double()}, "x must be float32, bfloat16 or float16 on CUDA"),
        ({"levels": torch.zeros(1)}, r"levels must have shape \(2\), got \(1\)"),
        ({"levels": torch.zeros(2).half()}, "levels must be float32"),
        ({"shift": torch.zeros(1)}, r"shift must have shape \(\), got \(1\)"),
        ({"packed": torch.zeros(5, 3)}, "packed must be uint8"),
        ({"bits": 3}, "bits must be 1, 2, 4 or 8, got 3"),
    ],
)
def test_linear_refuses_what_would_read_out_of_bounds(call, change, message):
    given = {
        "x": torch.zeros(2, 17),
        "packed": torch.zeros((5, 3), dtype=torch.uint8),
        "shift": torch.tensor(0.0),
        "scale": torch.tensor(1.0),
        "levels": lowbit_codebook(1),
        "bits": 1,
    }
    with pytest.raises(RuntimeError, match=message):
        call("lowbit_linear", *(given | change).values())


def test_other_refusals(call):
    packed, shift, scale, levels, _ = packed_weight(5, 17, 1)
    with pytest.raises(RuntimeError, match=r"weight must hold at least 2 values .*, got shape \(1, 1\)"):
        call("lowbit_quantize", torch.zeros(1, 1), levels, 1)
    weight, grad = torch.zeros(5, 17), torch.zeros(5, 16)
    with pytest.raises(RuntimeError, match=r"grad must have shape \(5, 17\), got \(5, 16\)"):
        call("lowbit_fake_quantize_backward", grad, weight, shift, scale, levels, 1)
    with pytest.raises(RuntimeError, match=r"grad must have shape \(2, 5\), got \(2, 4\)"):
        call("lowbit_linear_backward", torch.zeros(2, 4), packed, shift, scale, levels, 1, 17)
    with pytest.raises(RuntimeError, match="dtype must be float32, bfloat16 or float16"):
        call("lowbit_dequantize", packed, shift, scale, levels, 1, 17, torch.int32)


def test_a_bank_of_another_shape_is_refused(call):
    bank = AdapterBank.from_dense(normal(2, 3, 8), normal(2, 8, 3), torch.ones(2), 1)
    x, ids, levels = torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), lowbit_codebook(1)
    with pytest.raises(RuntimeError, match=r"constants must have shape \(2, 5\), got \(2, 4\)"):
        call("adapter_bank", x, ids, bank.down, bank.up, bank.constants[:, :4], levels, 1, 8, True)
    with pytest.raises(RuntimeError, match="adapter_ids must be int64"):
        call("adapter_bank", x, ids.int(), bank.down, bank.up, bank.constants, levels, 1, 8, True)
    with pytest.raises(RuntimeError, match=r"up must have shape \(2, 3, 1\), got \(1, 3, 1\)"):
        call("adapter_bank", x, ids, bank.down, bank.up[:1], bank.constants, levels, 1, 8, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), [], 0, 1.0), r"logits must have 2 dimensions, got shape \(3\)"),
        ((torch.zeros(2, 0), [], 0, 1.0), r"logits must have a vocabulary, got shape \(2, 0\)"),
        ((torch.zeros(2, 3), [1], 0, 1.0), r"token_ids must have shape \(2\), got \(1\)"),
        ((torch.zeros(2, 3), [], 4, 1.0), "top_k must lie between 0 and 3, got 4"),
        ((torch.zeros(2, 3000), [], 2049, 1.0), "top_k must be at most 2048 on CUDA, got 2049"),
        ((torch.zeros(2, 3), [], 0, -1.0), "temperature must be positive, got -1"),
        ((torch.zeros(2, 3).double(), [], 0, 1.0), "logits must be float32, bfloat16 or float16 on CUDA"),
    ],
)
def test_token_statistics_refuses(call, arguments, message):
    logits, ids, top_k, temperature = arguments
    with pytest.raises(RuntimeError, match=message):
        call("token_statistics", logits, torch.tensor(ids, dtype=torch.int64), top_k, temperature)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("beta", [0, 0.3, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_divergence(call, dtype, beta, masked):
    student, teacher = normal(67, 5, dtype=dtype).T, normal(67, 5, seed=1).T
    mask = torch.tensor([1, 0, 1, 1, 0] if masked else [], dtype=torch.bool)
    result = call("divergence", student, teacher, mask, beta, 0.7)
    for got, expected in zip(
        result, torch.ops.petkit.divergence(student, teacher, mask, beta, 0.7), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for upstream in (normal(5, seed=2), normal(1, seed=3).expand(5)):
        arguments = (teacher, mask, result[-1], upstream, beta, 0.7)
        got = call("divergence_backward", student, *arguments)
        assert_close(got, torch.ops.petkit.divergence_backward(student, *arguments))
        there = student.contiguous()
        assert call("divergence_backward_", there, *arguments) is None
        assert torch.equal(there, got)
    with pytest.raises(RuntimeError, match="student_logits must be contiguous to be overwritten"):
        call("divergence_backward_", student, *arguments)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_selected_log_probs(call, dtype, masked):
    logits, ids = normal(67, 5, dtype=dtype).T, torch.arange(15).view(3, 5).T
    mask = torch.tensor([1, 0, 1, 1, 0] if masked else [], dtype=torch.bool)
    result = call("selected_log_probs", logits, ids, mask, 0.7)
    expected = torch.ops.petkit.selected_log_probs(logits, ids, mask, 0.7)
    for got, other in zip(result, expected, strict=True):
        torch.testing.assert_close(got, other, rtol=1e-5, atol=1e-5)
    for upstream in (normal(3, 5, seed=2).T, normal(1, 1, seed=3).expand(5, 3)):
        arguments = (ids, mask, *result[2:], upstream, 0.7)
        got = call("selected_log_probs_backward", logits, *arguments)
        assert_close(got, torch.ops.petkit.selected_log_probs_backward(logits, *arguments))
        there = logits.contiguous()
        assert call("selected_log_probs_backward_", there, *arguments) is None
        assert torch.equal(there, got)
    with pytest.raises(RuntimeError, match="logits must be contiguous to be overwritten"):
        call("selected_log_probs_backward_", logits, *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(3)}, r"student_logits must have 2 dimensions, got shape \(3\)"),
        ({"student": torch.zeros(2, 0)}, r"student_logits must have a vocabulary, got shape \(2, 0\)"),
        (
            {"student": torch.zeros(2, 3).double()},
            "student_logits must be float32, bfloat16 or float16 on CUDA",
        ),
        (
            {"teacher": torch.zeros(2, 3).double()},
            "teacher_logits must be float32, bfloat16 or float16 on CUDA",
        ),
        ({"teacher": torch.zeros(2, 4)}, r"teacher_logits must have shape \(2, 3\), got \(2, 4\)"),
        ({"mask": torch.ones(2)}, "mask must be bool"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must have shape \(2\), got \(3\)"),
        ({"beta": 1.5}, "beta must lie between 0 and 1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
    ],
)
def test_divergence_refuses(call, change, message):
    given = {
        "student": torch.zeros(2, 3),
        "teacher": torch.zeros(2, 3),
        "mask": torch.empty(0, dtype=torch.bool),
        "beta": 0.5,
        "temperature": 1.0,
    }
    with pytest.raises(RuntimeError, match=message):
        call("divergence", *(given | change).values())


def test_gradients_of_rows_refuse_what_belongs_to_others(call):
    rows, none, ids = (
        torch.zeros(2, 3),
        torch.empty(0, dtype=torch.bool),
        torch.zeros(2, 1, dtype=torch.int64),
    )
    with pytest.raises(RuntimeError, match=r"statistics must have shape \(2, 5\), got \(2, 4\)"):
        call("divergence_backward", rows, rows, none, torch.zeros(2, 4), torch.zeros(2), 0.5, 1.0)
    with pytest.raises(RuntimeError, match=r"upstream must have shape \(2\), got \(1\)"):
        call("divergence_backward", rows, rows, none, torch.zeros(2, 5), torch.zeros(1), 0.5, 1.0)
    with pytest.raises(RuntimeError, match=r"token_ids must have shape \(2, 1\), got \(1, 1\)"):
        call("selected_log_probs", rows, ids[:1], none, 1.0)
    with pytest.raises(RuntimeError, match="token_ids must be int64"):
        call("selected_log_probs", rows, ids.int(), none, 1.0)
    column = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"log_sum must have shape \(2\), got \(1\)"):
        call("selected_log_probs_backward", rows, ids, none, column, column[:1], column[:, None], 1.0)
    with pytest.raises(RuntimeError, match=r"upstream must have shape \(2, 1\), got \(2\)"):
        call("selected_log_probs_backward", rows, ids, none, column, column, column, 1.0)
