// The index of all operators: one schema a line. Kernels register themselves in cpp/ops (CPU) and
// csrc_cuda (CUDA); petkit/ops adds the fake, the gradient and the pure-torch default of each.
//
// `levels` holds the 2**bits float32 codebook levels in rising order; `shift` and `scale` are
// float32 scalars, so that a weight is shift + scale * levels[code]. `packed` is row-aligned (see
// petkit/packed.h). In adapter_bank `down` is (n, hidden, row_bytes(in)), `up` is stored transposed
// as (n, hidden, row_bytes(out)), and a row of `constants` is down shift, down scale, up shift, up
// scale, scaling.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(petkit, m) {
  m.def("lowbit_quantize(Tensor weight, Tensor levels, int bits) -> (Tensor packed, Tensor shift, "
        "Tensor scale)");
  m.def("lowbit_dequantize(Tensor packed, Tensor shift, Tensor scale, Tensor levels, int bits, int "
        "in_features, ScalarType dtype) -> Tensor");
  m.def("lowbit_fake_quantize(Tensor weight, Tensor levels, int bits, bool exact) -> (Tensor "
        "quantized, Tensor shift, Tensor scale)");
  m.def("lowbit_fake_quantize_backward(Tensor grad, Tensor weight, Tensor shift, Tensor scale, "
        "Tensor levels, int bits) -> Tensor");
  m.def("lowbit_linear(Tensor x, Tensor packed, Tensor shift, Tensor scale, Tensor levels, int "
        "bits) -> Tensor");
  m.def("lowbit_linear_backward(Tensor grad, Tensor packed, Tensor shift, Tensor scale, Tensor "
        "levels, int bits, int in_features) -> Tensor");
  m.def("lowbit_transpose(Tensor packed, int bits, int columns) -> Tensor");
  m.def("adapter_bank(Tensor x, Tensor adapter_ids, Tensor down, Tensor up, Tensor constants, "
        "Tensor levels, int bits, int out_features, bool relu) -> Tensor");
  m.def("adapter_bank_add_(Tensor(a!) y, Tensor x, Tensor adapter_ids, Tensor down, Tensor up, "
        "Tensor constants, Tensor levels, int bits, bool relu) -> ()");
  m.def(
      "token_statistics(Tensor logits, Tensor token_ids, int top_k, float temperature) -> (Tensor "
      "log_z, Tensor entropy, Tensor varentropy, Tensor max_prob, Tensor log_prob, Tensor "
      "top_log_probs, Tensor top_ids, Tensor maximum, Tensor log_sum)");
  m.def(
      "token_statistics_backward(Tensor logits, Tensor token_ids, Tensor maximum, Tensor log_sum, "
      "Tensor entropy, Tensor grad_log_z, Tensor grad_entropy, Tensor grad_log_prob, float "
      "temperature) -> Tensor");
  m.def("selected_log_probs(Tensor logits, Tensor token_ids, Tensor mask, float temperature) -> "
        "(Tensor log_probs, Tensor entropy, Tensor maximum, Tensor log_sum)");
  m.def("selected_log_probs_backward(Tensor logits, Tensor token_ids, Tensor mask, Tensor maximum, "
        "Tensor log_sum, Tensor upstream, float temperature) -> Tensor");
  m.def("selected_log_probs_backward_(Tensor(a!) logits, Tensor token_ids, Tensor mask, Tensor "
        "maximum, Tensor log_sum, Tensor upstream, float temperature) -> ()");
  m.def("divergence(Tensor student, Tensor teacher, Tensor mask, float beta, float temperature) -> "
        "(Tensor loss, Tensor forward_kl, Tensor reverse_kl, Tensor statistics)");
  m.def("divergence_backward(Tensor student, Tensor teacher, Tensor mask, Tensor statistics, "
        "Tensor upstream, float beta, float temperature) -> Tensor");
  m.def("divergence_backward_(Tensor(a!) student, Tensor teacher, Tensor mask, Tensor statistics, "
        "Tensor upstream, float beta, float temperature) -> ()");
  m.def("crf_log_partition(Tensor emissions, Tensor mask, Tensor transitions, Tensor start, Tensor "
        "end) -> Tensor");
  m.def("crf_log_partition_backward(Tensor grad, Tensor emissions, Tensor mask, Tensor "
        "transitions, Tensor start, Tensor end) -> (Tensor grad_emissions, Tensor "
        "grad_transitions, Tensor grad_start, Tensor grad_end)");
  m.def("crf_viterbi(Tensor emissions, Tensor mask, Tensor transitions, Tensor start, Tensor end) "
        "-> (Tensor paths, Tensor scores)");
  m.def("crf_marginals(Tensor emissions, Tensor mask, Tensor transitions, Tensor start, Tensor "
        "end) -> (Tensor marginals, Tensor transition_scores, Tensor log_z)");
  m.def("crf_kbest(Tensor emissions, Tensor mask, Tensor transitions, Tensor start, Tensor end, "
        "int k) -> (Tensor paths, Tensor scores)");
  m.def("crf_sample(Tensor emissions, Tensor mask, Tensor transitions, Tensor start, Tensor end, "
        "Tensor uniforms) -> (Tensor samples, Tensor log_z)");
  m.def("beam_crf_log_partition(Tensor emissions, Tensor mask, Tensor left, Tensor right, Tensor "
        "dynamic, Tensor targets, int beam) -> (Tensor log_z, Tensor score, Tensor candidates)");
  m.def(
      "beam_crf_log_partition_backward(Tensor grad_log_z, Tensor grad_score, Tensor emissions, "
      "Tensor mask, Tensor left, Tensor right, Tensor dynamic, Tensor targets, Tensor candidates) "
      "-> (Tensor grad_emissions, Tensor grad_left, Tensor grad_right, Tensor grad_dynamic)");
  m.def("beam_crf_viterbi(Tensor emissions, Tensor mask, Tensor left, Tensor right, Tensor "
        "dynamic, int beam) -> (Tensor paths, Tensor scores)");
  m.def("merge_linear(Tensor models, Tensor weights, ScalarType dtype) -> Tensor");
  m.def("merge_deltas(Tensor base, Tensor models, Tensor weights, Tensor low, Tensor high, Tensor "
        "keep, Tensor keys, int start, str consensus, bool normalize, float factor, ScalarType "
        "dtype) -> Tensor");
  m.def("magnitude_counts(Tensor base, Tensor models, Tensor prefix) -> Tensor");
  m.def("magnitudes_within(Tensor base, Tensor models, Tensor low, Tensor high) -> (Tensor counts, "
        "Tensor values)");
  m.def("finite_rows(Tensor models) -> Tensor");
}
