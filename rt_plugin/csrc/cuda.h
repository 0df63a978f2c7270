// The CUDA kernels, without torch: plain device pointers in and out.
#pragma once

#include <cuda_runtime.h>

#include "swish_rnn.h"

namespace rt {

// h and c: (L, B, d'), contiguous, in the type of x12. c may be null: then the state is not saved.
cudaError_t cuda_forward(const Problem& problem, void* h, void* c, cudaStream_t stream);

// Rows of (4, d') numbers that `cuda_backward` needs for its partial sums, float64 for float64, else float32.
int64_t cuda_partial_rows(const Problem& problem);

// dx12: (L, B, 2 d'), contiguous, in the type of x12. partial: `cuda_partial_rows` rows, contents do not matter.
cudaError_t cuda_backward(const Problem& problem, const Strided& dh, const void* c, void* dx12, void* partial,
                          const ParameterGradient (&gradients)[kParameters], cudaStream_t stream);

}  // namespace rt
