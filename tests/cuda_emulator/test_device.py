"""The operators on a real device against the same operators on the CPU; they run only where there is one."""

from __future__ import annotations

import pytest
import torch

from petkit.ops import (
    AdapterBank,
    _library,
    adapter_bank,
    beam_crf_viterbi,
    crf_kbest,
    crf_log_partition,
    crf_marginals,
    crf_sample,
    crf_viterbi,
    divergence,
    lowbit_dequantize,
    lowbit_fake_quantize,
    lowbit_linear,
    lowbit_quantize,
    selected_log_probs,
    token_statistics,
)
from petkit.ops.beam_crf_log_partition import log_partition_and_score
from tests.cuda_emulator.crf_support import far_below, forbidding
from tests.cuda_emulator.support import BITS, DTYPES, normal
from tests.ops.beam_crf_cases import SHAPES as BEAM_SHAPES
from tests.ops.beam_crf_cases import inputs as beam_inputs
from tests.ops.crf_cases import DTYPES as CRF_DTYPES
from tests.ops.crf_cases import inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

# Relative to the largest result: float32 sums in another order; one rounding of the 16-bit types.
CLOSE = {"float32": 1e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@pytest.fixture(autouse=True)
def compiled_kernels() -> None:
    if not _library.backend()["cuda"]:
        pytest.fail(f"the CUDA kernels are not loaded: {_library.backend()['cuda_why']}")


def assert_close(device_result, cpu_result):
    assert device_result.is_cuda
    assert device_result.dtype == cpu_result.dtype
    bound = CLOSE[str(cpu_result.dtype)[6:]] * float(cpu_result.abs().max()) if cpu_result.numel() else 0.0
    torch.testing.assert_close(device_result.cpu(), cpu_result, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 65), (64, 768), (1000, 1003)])
@pytest.mark.parametrize("bits", BITS)
def test_quantize_and_dequantize(bits, shape, dtype):
    weight = normal(*shape, dtype=dtype)
    packed, shift, scale = lowbit_quantize(weight.cuda(), bits)
    expected_packed, *constants = lowbit_quantize(weight, bits)
    torch.testing.assert_close((shift.cpu(), scale.cpu()), tuple(constants), rtol=1e-6, atol=1e-7)
    # A constant that differs in its last bit may move a weight on a boundary.
    assert (packed.cpu() != expected_packed).float().mean() < 1e-3
    dense = lowbit_dequantize(packed, shift, scale, bits, shape[1], dtype=weight.dtype)
    expected = lowbit_dequantize(packed.cpu(), shift.cpu(), scale.cpu(), bits, shape[1], dtype=weight.dtype)
    assert torch.equal(dense.cpu(), expected)


@pytest.mark.parametrize("gradient", ["exact", "identity"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_fake_quantize(bits, dtype, gradient):
    weight, upstream = normal(65, 130, dtype=dtype), normal(65, 130, seed=1, dtype=dtype)
    results = []
    for device in ("cuda", "cpu"):
        live = weight.to(device).requires_grad_()
        quantized = lowbit_fake_quantize(live, bits, gradient=gradient)
        quantized.backward(upstream.to(device))
        results.append((quantized.detach(), live.grad))
    for on_device, on_cpu in zip(*results, strict=True):
        assert_close(on_device, on_cpu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5, 9), (1, 17, 63), (1, 4096, 4096), (8, 768, 768), (300, 96, 770)])
@pytest.mark.parametrize("bits", BITS)
def test_linear(bits, shape, dtype):
    rows, out, columns = shape
    weight = lowbit_quantize(normal(out, columns), bits)
    x, upstream = normal(rows, columns, seed=1, dtype=dtype), normal(rows, out, seed=2, dtype=dtype)
    results = []
    for device in ("cuda", "cpu"):
        live = x.to(device).requires_grad_()
        y = lowbit_linear(live, *(part.to(device) for part in weight), bits)
        y.backward(upstream.to(device))
        results.append((y.detach(), live.grad))
    for on_device, on_cpu in zip(*results, strict=True):
        assert_close(on_device, on_cpu)


@pytest.mark.parametrize("tokens", [0, 1, 256, 4099])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_adapter_bank(bits, dtype, tokens):
    bank = AdapterBank.from_dense(normal(5, 8, 96), normal(5, 96, 8, seed=1), torch.linspace(0.5, 2, 5), bits)
    x, ids = normal(tokens, 96, seed=2, dtype=dtype), torch.arange(tokens) // 3 % 6 - 1
    assert_close(adapter_bank(x.cuda(), ids.cuda(), bank.to("cuda")), adapter_bank(x, ids, bank))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 50257), (300, 1001), (4, 152064)])
def test_token_statistics(shape, dtype):
    logits, ids = normal(*shape, dtype=dtype) * 3, torch.arange(shape[0])
    results = []
    for device in ("cuda", "cpu"):
        live = logits.to(device).detach().requires_grad_()
        found = token_statistics(live, ids.to(device), 8, 0.9)
        (found.log_z + 2 * found.entropy - found.log_prob).sum().backward()
        results.append((*(part.detach() for part in found), live.grad))
    for on_device, on_cpu in zip(*results, strict=True):
        assert_close(on_device, on_cpu)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("beta", [0, 0.5, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 50257), (300, 1001), (4, 152064)])
def test_divergence(shape, dtype, beta, overwrite):
    student, teacher = normal(*shape, dtype=dtype) * 3, normal(*shape, seed=1) * 3
    mask = torch.arange(shape[0]) % 3 != 1
    results = []
    for device in ("cuda", "cpu"):
        live = student.to(device).detach().requires_grad_()
        found = divergence(live * 1, teacher.to(device), beta, mask.to(device), 0.9, overwrite)
        found.loss.sum().backward()
        results.append((*(part.detach() for part in found), live.grad))
    for on_device, on_cpu in zip(*results, strict=True):
        assert_close(on_device, on_cpu)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 50257), (300, 1001), (4, 152064)])
def test_selected_log_probs(shape, dtype, overwrite):
    logits, ids = normal(*shape, dtype=dtype) * 3, torch.arange(shape[0] * 65).view(-1, 65) % 777
    results = []
    for device in ("cuda", "cpu"):
        live = logits.to(device).detach().requires_grad_()
        found = selected_log_probs(live * 1, ids.to(device), None, 0.9, overwrite)
        found.log_probs.sum().backward()
        results.append((*(part.detach() for part in found), live.grad))
    for on_device, on_cpu in zip(*results, strict=True):
        assert_close(on_device, on_cpu)


def crf_results(arguments, device):
    live = [part.clone().to(device).requires_grad_(part.is_floating_point()) for part in arguments]
    log_z = crf_log_partition(*live)
    log_z.sum().backward()
    still = [part.detach() for part in live]
    scores = (crf_viterbi(*still)[1], crf_kbest(*still, 3)[1], crf_marginals(*still))
    return log_z.detach(), *(part.grad for part in live if part.is_floating_point()), *scores


CRF_CASES = [inputs(5, 9, 7, dtype) for dtype in CRF_DTYPES]
CRF_CASES += [inputs(64, 200, 33), inputs(3, 40, 300), inputs(2, 5, 1024), inputs(1, 5000, 4)]
CRF_CASES += [forbidding(-torch.inf), forbidding(-1e4)]


@pytest.mark.parametrize("arguments", CRF_CASES)
def test_crf(arguments):
    results = crf_results(arguments, "cuda"), crf_results(arguments, "cpu")
    for on_device, on_cpu in zip(*results, strict=True):
        assert on_device.is_cuda
        # Two results that may each be off by their dtype's rounding and by that of the forward variables.
        bound = max(torch.finfo(on_cpu.dtype).eps, 1e-5)
        torch.testing.assert_close(on_device.cpu(), on_cpu, rtol=bound, atol=bound)
    for one, two in zip(results[0], crf_results(arguments, "cuda"), strict=True):
        assert torch.equal(one, two)


def test_crf_where_likelihoods_change_by_hundreds():
    for on_device, on_cpu in zip(
        crf_results(far_below(), "cuda"), crf_results(far_below(), "cpu"), strict=True
    ):
        # Scores of 700 have a last digit of 6e-5, which is what probabilities are known to.
        torch.testing.assert_close(on_device.cpu(), on_cpu, rtol=1e-5, atol=1e-3)


def test_crf_sample():
    arguments = inputs(3, 30, 40)
    on_device = [part.cuda() for part in arguments]
    samples = crf_sample(*on_device, 4000, torch.Generator("cuda").manual_seed(0))
    again = crf_sample(*on_device, 4000, torch.Generator("cuda").manual_seed(0))
    assert torch.equal(samples, again)
    assert torch.equal(samples == -1, ~on_device[1].expand_as(samples))
    frequency = torch.nn.functional.one_hot(samples.clamp_min(0).cpu(), 40).double().mean(0)
    difference = (frequency - crf_marginals(*arguments))[arguments.mask]
    # Five standard deviations of a frequency.
    assert difference.abs().max() < 5 * 0.5 / 4000**0.5


def beam_results(arguments, device):
    emissions, mask, left, right, beam, dynamic, targets = arguments
    mask, targets = mask.to(device), targets.to(device)
    live = [part.clone().to(device).requires_grad_() for part in (emissions, left, right, dynamic)]
    log_z, score = log_partition_and_score(live[0], mask, *live[1:3], beam, live[3], targets)
    (2 * log_z - score).sum().backward()
    still = [part.detach() for part in live]
    best = beam_crf_viterbi(still[0], mask, *still[1:3], beam, still[3])[1]
    return log_z.detach(), score.detach(), best, *(part.grad for part in live)


BEAM_CASES = [((3, 6, 97, 17, 33), dtype) for dtype in CRF_DTYPES]
BEAM_CASES += [(shape, torch.float32) for shape in BEAM_SHAPES]
BEAM_CASES += [((16, 50, 32000, 32, 64), torch.bfloat16), ((1, 3, 2000, 4, 1500), torch.float64)]
BEAM_CASES += [((2, 9, 4000, 64, 256), torch.float32)]


@pytest.mark.parametrize(("shape", "dtype"), BEAM_CASES)
def test_beam_crf(shape, dtype):
    arguments = beam_inputs(*shape, dtype)
    results = beam_results(arguments, "cuda"), beam_results(arguments, "cpu")
    for on_device, on_cpu in zip(*results, strict=True):
        assert on_device.is_cuda
        # As of linear chains; transitions are sums over the rank besides.
        bound = max(torch.finfo(on_cpu.dtype).eps, 2e-5)
        torch.testing.assert_close(on_device.cpu(), on_cpu, rtol=bound, atol=bound)
    for one, two in zip(results[0], beam_results(arguments, "cuda"), strict=True):
        assert torch.equal(one, two)


def test_kernels_use_the_current_stream():
    weight = normal(512, 768).cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        packed, shift, scale = lowbit_quantize(weight, 1)
        y = lowbit_linear(weight[:1], packed, shift, scale, 1)
    stream.synchronize()
    assert_close(y, lowbit_linear(weight[:1].cpu(), packed.cpu(), shift.cpu(), scale.cpu(), 1))


def test_the_operator_refuses_what_would_read_out_of_bounds():
    packed, shift, scale = lowbit_quantize(normal(5, 17).cuda(), 1)
    levels = torch.zeros(2, device="cuda")
    with pytest.raises(RuntimeError, match="packed must hold 5 bytes a row for 33 codes of 1 bits"):
        torch.ops.petkit.lowbit_linear(normal(2, 33).cuda(), packed, shift, scale, levels, 1)
    with pytest.raises(RuntimeError, match=r"levels must have shape \(2\), got \(1\)"):
        torch.ops.petkit.lowbit_linear(normal(2, 17).cuda(), packed, shift, scale, levels[:1], 1)
    with pytest.raises(RuntimeError, match="shift must lie on CUDA device 0"):
        torch.ops.petkit.lowbit_linear(normal(2, 17).cuda(), packed, shift.cpu(), scale, levels, 1)
