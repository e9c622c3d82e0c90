"""The index of `petkit bench ops`: every op and its cases."""

from __future__ import annotations

from collections.abc import Callable

from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops import (
    bench_adapter_bank,
    bench_beam_crf_log_partition,
    bench_beam_crf_viterbi,
    bench_crf_kbest,
    bench_crf_log_partition,
    bench_crf_marginals,
    bench_crf_sample,
    bench_crf_viterbi,
    bench_divergence,
    bench_finite_rows,
    bench_lowbit_dequantize,
    bench_lowbit_fake_quantize,
    bench_lowbit_linear,
    bench_lowbit_quantize,
    bench_magnitude_counts,
    bench_magnitudes_within,
    bench_merge_deltas,
    bench_merge_linear,
    bench_selected_log_probs,
    bench_token_statistics,
)

GROUPS: dict[str, Callable[[], list[Case]]] = {
    "lowbit_quantize": bench_lowbit_quantize.cases,
    "lowbit_dequantize": bench_lowbit_dequantize.cases,
    "lowbit_linear": bench_lowbit_linear.cases,
    "lowbit_fake_quantize": bench_lowbit_fake_quantize.cases,
    "adapter_bank": bench_adapter_bank.cases,
    "token_statistics": bench_token_statistics.cases,
    "selected_log_probs": bench_selected_log_probs.cases,
    "divergence": bench_divergence.cases,
    "crf_log_partition": bench_crf_log_partition.cases,
    "crf_viterbi": bench_crf_viterbi.cases,
    "crf_marginals": bench_crf_marginals.cases,
    "crf_kbest": bench_crf_kbest.cases,
    "crf_sample": bench_crf_sample.cases,
    "beam_crf_log_partition": bench_beam_crf_log_partition.cases,
    "beam_crf_viterbi": bench_beam_crf_viterbi.cases,
    "merge_linear": bench_merge_linear.cases,
    "merge_deltas": bench_merge_deltas.cases,
    "magnitude_counts": bench_magnitude_counts.cases,
    "magnitudes_within": bench_magnitudes_within.cases,
    "finite_rows": bench_finite_rows.cases,
}
"""Op to its cases. A new op adds one line."""
