"""The CUDA operators of CRFs: their host code on the emulator, against the same operators on the CPU.

As in test_operators.py it is about the order of arguments, checks, allocations and strides.
"""

from __future__ import annotations

import pytest
import torch

from petkit.ops import crf_kbest, crf_log_partition, crf_viterbi
from tests.ops.crf_cases import DTYPES, TOLERANCE, inputs


def any_layout(arguments):
    """The same numbers, with every tensor laid out in an unusual way."""
    emissions, mask, transitions, start, end = arguments
    return arguments._replace(
        emissions=emissions.transpose(0, 1).contiguous().transpose(0, 1),
        mask=mask.t().contiguous().t(),
        transitions=transitions.t().contiguous().t(),
        start=torch.stack([start, start], -1)[:, 0],
        end=end.flip(0).contiguous().flip(0),
    )


def same(result, expected, dtype):
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    bound = 5 * TOLERANCE[dtype]
    torch.testing.assert_close(result, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_partition(call, dtype):
    arguments = inputs(4, 9, 6, dtype)
    expected = crf_log_partition(*arguments)
    for given in (arguments, any_layout(arguments)):
        same(call("crf_log_partition", *given), expected, dtype)
    every_other = torch.stack([arguments.emissions] * 2, -1)[..., 0]
    same(call("crf_log_partition", every_other, *arguments[1:]), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_partition_backward(call, dtype):
    arguments = inputs(4, 9, 6, dtype)
    grad = torch.linspace(-1, 1, 8, dtype=arguments.start.dtype)[::2]
    expected = torch.ops.petkit.crf_log_partition_backward(grad, *arguments)
    for given in (arguments, any_layout(arguments)):
        found = call("crf_log_partition_backward", grad, *given)
        # The stored gradient of the emissions may round the other way.
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=torch.finfo(dtype).eps * 4)
        assert found[0].dtype == dtype
        for one, other in zip(found[1:], expected[1:], strict=True):
            same(one, other, dtype)
    with pytest.raises(RuntimeError, match=r"grad must have shape \(4\), got \(3\)"):
        call("crf_log_partition_backward", grad[:3], *arguments)
    with pytest.raises(RuntimeError, match="grad must be of the type of transitions"):
        call("crf_log_partition_backward", grad.half(), *arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_viterbi(call, dtype):
    arguments = inputs(4, 9, 6, dtype)
    expected_paths, expected = crf_viterbi(*arguments)
    for given in (arguments, any_layout(arguments)):
        paths, scores = call("crf_viterbi", *given)
        assert torch.equal(paths, expected_paths)
        same(scores, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_marginals(call, dtype):
    arguments = inputs(4, 9, 6, dtype)
    expected = torch.ops.petkit.crf_marginals(*arguments)
    for given in (arguments, any_layout(arguments)):
        for one, other in zip(call("crf_marginals", *given), expected, strict=True):
            same(one, other, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sample(call, dtype):
    arguments = inputs(4, 9, 6, dtype)
    uniforms = torch.rand((9, 4, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).permute(
        2, 1, 0
    )
    expected_samples, expected = torch.ops.petkit.crf_sample(*arguments, uniforms)
    for given in (arguments, any_layout(arguments)):
        samples, log_z = call("crf_sample", *given, uniforms)
        assert torch.equal(samples, expected_samples)
        same(log_z, expected, dtype)
    with pytest.raises(RuntimeError, match=r"uniforms must have shape \(5, 4, 9\), got \(5, 4, 8\)"):
        call("crf_sample", *arguments, uniforms[:, :, 1:])
    with pytest.raises(RuntimeError, match="uniforms must be float64"):
        call("crf_sample", *arguments, uniforms.float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_kbest(call, dtype):
    arguments = inputs(4, 9, 6, dtype)
    expected_paths, expected = crf_kbest(*arguments, 5)
    for given in (arguments, any_layout(arguments)):
        paths, scores = call("crf_kbest", *given, 5)
        assert torch.equal(paths, expected_paths)
        same(scores, expected, dtype)


def test_kbest_refuses_a_count_that_is_none_or_too_large(call):
    with pytest.raises(RuntimeError, match="k must be at least 1, got 0"):
        call("crf_kbest", *GOOD, 0)
    with pytest.raises(RuntimeError, match=r"tags \* k must be below 2\*\*31, got 4 \* 600000000"):
        call("crf_kbest", *GOOD, 600_000_000)


GOOD = inputs(2, 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emissions": torch.zeros(3, 4)}, r"emissions must have 3 dimensions, got shape \(3, 4\)"),
        ({"emissions": torch.zeros(2, 3, 0)}, r"must have 1 to 65536 tags, got shape \(2, 3, 0\)"),
        ({"emissions": torch.zeros(2, 3, 4).int()}, "emissions must be float32, bfloat16 or float16 on CUDA"),
        ({"mask": torch.ones(2, 3)}, "mask must be bool"),
        ({"mask": torch.ones(3, 2).bool()}, r"mask must have shape \(2, 3\), got \(3, 2\)"),
        ({"transitions": torch.zeros(4, 3)}, r"transitions must have shape \(4, 4\), got \(4, 3\)"),
        ({"transitions": torch.zeros(4, 4).double()}, "transitions must be float32, got another type"),
        ({"emissions": torch.zeros(2, 3, 4).double()}, "transitions must be float64 like emissions"),
        ({"start": torch.zeros(3)}, r"start must have shape \(4\), got \(3\)"),
        ({"end": torch.zeros(4).half()}, "end must be float32"),
    ],
)
def test_refuses_what_would_read_out_of_bounds(call, change, message):
    with pytest.raises(RuntimeError, match=message):
        call("crf_log_partition", *GOOD._replace(**change))
