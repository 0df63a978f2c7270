// The CPU kernels, without torch: plain pointers in and out, so that a test program can drive them alone.
#pragma once

#include "swish_rnn.h"

// Asserted to be free of dependencies: the runs of one call never overlap.
#if defined(__clang__)
#define RT_VECTOR_LOOP _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define RT_VECTOR_LOOP _Pragma("GCC ivdep")
#else
#define RT_VECTOR_LOOP
#endif
#if defined(__GNUC__)
#define RT_INLINE_LAMBDA __attribute__((always_inline))
#else
#define RT_INLINE_LAMBDA
#endif

namespace rt {

// One run of `width` neighbouring channels at one position.
struct ForwardRow {
  int64_t width;
  const void *x1, *x2;
  int64_t x12_stride;  // to the next position, in elements; may be negative
  const void* parameters;  // alpha, beta, c_bias, gate_bias, `parameter_stride` apart, in the type of calculation
  int64_t parameter_stride;
  void* state;  // c[i-k] in, c[i] out, in the type of calculation
  void *h, *c;  // c is null where it is not saved
  int64_t out_stride;  // to the next position of both, in elements; may be negative
};

// One run of `width` neighbouring channels at one or more positions i, i-k, i-2k, ... Pointers stand at the first one,
// strides (in elements) lead to the next and may be negative.
struct BackwardRow {
  int64_t width;
  const void *x1, *x2;
  int64_t x12_stride;
  const void* c;  // c[i-k]
  int64_t c_stride;
  const void* dh;
  int64_t dh_stride;
  const void* parameters;
  int64_t parameter_stride;
  void *dx1, *dx2;
  int64_t dx12_stride;
  void* carry;  // the gradient of c[i] from c[i+k] in, of c[i-k] out, in the type of calculation
  void* sums;  // the gradients of the parameters, `sum_stride` apart, in the type of calculation
  int64_t sum_stride;
};

// The loops for one storage type, one gate and one instruction set.
struct RowKernels {
  int unroll;
  void (*forward[2])(const ForwardRow&);  // [c is saved]
  void (*backward[2])(const BackwardRow&);  // [0] covers 1 position, [1] `unroll` positions
};

RowKernels row_kernels_baseline(DType dtype, Gate gate);
RowKernels row_kernels_avx2(DType dtype, Gate gate);
RowKernels row_kernels_avx512(DType dtype, Gate gate);
RowKernels row_kernels_avx512bf16(Gate gate);  // bfloat16 alone, rounded by the machine's own instruction

// The best that this machine can run, or what RT_PLUGIN_CPU=baseline|avx2|avx512 asks for.
RowKernels row_kernels(DType dtype, Gate gate);
const char* cpu_capability();

// Runs function(context, first, last) for parts of [0, count), possibly at the same time.
struct Threads {
  int64_t count;
  void (*parallel_for)(int64_t count, void (*function)(int64_t first, int64_t last, void* context), void* context);
};

// h and c: (L, B, d'), contiguous, in the type of x12. c may be null: then the state is not saved.
void cpu_forward(const Problem& problem, void* h, void* c, const Threads& threads);

// dx12: (L, B, 2 d'), contiguous, in the type of x12. The sums over L and B are taken in an order that depends on the
// shape alone.
void cpu_backward(const Problem& problem, const Strided& dh, const void* c, void* dx12,
                  const ParameterGradient (&gradients)[kParameters], const Threads& threads);

}  // namespace rt
