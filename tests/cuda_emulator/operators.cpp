// The operators themselves on the emulator: their argument checks, allocations and launches run on
// CPU tensors that the dispatcher is told to treat as CUDA ones. They get a namespace of their own,
// so that the compiled operators can be loaded beside them.
#define petkit petkit_emulated
#include "adapter_bank.cu"
#include "beam_crf_log_partition.cu"
#include "beam_crf_viterbi.cu"
#include "crf_kbest.cu"
#include "crf_log_partition.cu"
#include "crf_marginals.cu"
#include "crf_sample.cu"
#include "crf_viterbi.cu"
#include "divergence.cu"
#include "library.cpp"
#include "lowbit_dequantize.cu"
#include "lowbit_fake_quantize.cu"
#include "lowbit_linear.cu"
#include "lowbit_quantize.cu"
#include "selected_log_probs.cu"
#include "token_statistics.cu"
