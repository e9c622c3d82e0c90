"""The index of `petkit bench ops`: every op and its cases."""

from __future__ import annotations

from collections.abc import Callable

from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops import (
    bench_adapter_bank,
    bench_lowbit_dequantize,
    bench_lowbit_fake_quantize,
    bench_lowbit_linear,
    bench_lowbit_quantize,
    bench_token_statistics,
)

GROUPS: dict[str, Callable[[], list[Case]]] = {
    "lowbit_quantize": bench_lowbit_quantize.cases,
    "lowbit_dequantize": bench_lowbit_dequantize.cases,
    "lowbit_linear": bench_lowbit_linear.cases,
    "lowbit_fake_quantize": bench_lowbit_fake_quantize.cases,
    "adapter_bank": bench_adapter_bank.cases,
    "token_statistics": bench_token_statistics.cases,
}
"""Op to its cases. A new op adds one line."""
