// The inner loops of the CPU kernels: a few positions of one run of neighbouring channels.
//
// Included by one source file per instruction set (cpu_rows_*.cpp), each compiled with its own flags. Nothing here may
// have external linkage but the table at the end, or the linker could hand AVX-512 code to a machine without it.
#pragma once

#include "cpu.h"

namespace rt {
namespace {

// Positions that one pass over the channels covers: parameters, state and sums are then loaded once for all of them.
constexpr int kUnroll = 4;

template <typename A>
RT_INLINE ChannelParameters<A> load_parameters(const A* parameters, int64_t stride, int64_t j) {
  return {parameters[j], parameters[stride + j], parameters[2 * stride + j], parameters[3 * stride + j]};
}

// Positions `Step` to `Steps - 1` of channel j. A recursion, because compilers vectorise the loop over the channels only
// when there is no loop inside.
template <typename T, Gate G, bool Save, int Step, int Steps>
struct ForwardSteps {
  template <typename A>
  static RT_INLINE A run(const ForwardRow& row, const T* __restrict x1, const T* __restrict x2, T* __restrict h,
                         T* __restrict c, int64_t j, A state, const ChannelParameters<A>& p) {
    state = next_state(A(widen(x1[Step * row.x12_stride + j])), state, p);
    A x2_j = widen(x2[Step * row.x12_stride + j]);
    h[Step * row.out_stride + j] = narrow<T>(gated_output<G>(state, x2_j, p));
    if (Save) c[Step * row.out_stride + j] = narrow<T>(state);
    return ForwardSteps<T, G, Save, Step + 1, Steps>::run(row, x1, x2, h, c, j, state, p);
  }
};
template <typename T, Gate G, bool Save, int Steps>
struct ForwardSteps<T, G, Save, Steps, Steps> {
  template <typename A>
  static RT_INLINE A run(const ForwardRow&, const T*, const T*, T*, T*, int64_t, A state, const ChannelParameters<A>&) {
    return state;
  }
};

template <typename T, Gate G, bool Save, int Steps>
void forward_row(const ForwardRow& argument) {
  using A = CalculationType<T>;
  const ForwardRow row = argument;
  const T* __restrict x1 = static_cast<const T*>(row.x1);
  const T* __restrict x2 = static_cast<const T*>(row.x2);
  const A* __restrict parameters = static_cast<const A*>(row.parameters);
  A* __restrict state = static_cast<A*>(row.state);
  T* __restrict h = static_cast<T*>(row.h);
  T* __restrict c = static_cast<T*>(row.c);
  RT_VECTOR_LOOP
  for (int64_t j = 0; j < row.width; ++j) {
    ChannelParameters<A> p = load_parameters(parameters, row.parameter_stride, j);
    state[j] = ForwardSteps<T, G, Save, 0, Steps>::run(row, x1, x2, h, c, j, state[j], p);
  }
}

template <typename A>
struct RowSums {
  A carry, alpha, beta, c_bias, gate_bias;
};

template <typename T, Gate G, int Step, int Steps>
struct BackwardSteps {
  template <typename A>
  static RT_INLINE RowSums<A> run(const BackwardRow& row, const T* __restrict x1, const T* __restrict x2,
                                  const T* __restrict c, const T* __restrict dh, T* __restrict dx1, T* __restrict dx2,
                                  int64_t j, RowSums<A> sums, const ChannelParameters<A>& p) {
    StepGradients<A> d = step_backward<G>(
        A(widen(dh[Step * row.dh_stride + j])), A(widen(x1[Step * row.x12_stride + j])),
        A(widen(x2[Step * row.x12_stride + j])), A(widen(c[Step * row.c_stride + j])), sums.carry, p);
    dx1[Step * row.dx12_stride + j] = narrow<T>(d.x1);
    dx2[Step * row.dx12_stride + j] = narrow<T>(d.x2);
    sums = {d.previous, sums.alpha + d.alpha, sums.beta + d.beta, sums.c_bias + d.c_bias, sums.gate_bias + d.x2};
    return BackwardSteps<T, G, Step + 1, Steps>::run(row, x1, x2, c, dh, dx1, dx2, j, sums, p);
  }
};
template <typename T, Gate G, int Steps>
struct BackwardSteps<T, G, Steps, Steps> {
  template <typename A>
  static RT_INLINE RowSums<A> run(const BackwardRow&, const T*, const T*, const T*, const T*, T*, T*, int64_t,
                                  RowSums<A> sums, const ChannelParameters<A>&) {
    return sums;
  }
};

template <typename T, Gate G, int Steps>
void backward_row(const BackwardRow& argument) {
  using A = CalculationType<T>;
  const BackwardRow row = argument;
  const T* __restrict x1 = static_cast<const T*>(row.x1);
  const T* __restrict x2 = static_cast<const T*>(row.x2);
  const T* __restrict c = static_cast<const T*>(row.c);
  const T* __restrict dh = static_cast<const T*>(row.dh);
  const A* __restrict parameters = static_cast<const A*>(row.parameters);
  T* __restrict dx1 = static_cast<T*>(row.dx1);
  T* __restrict dx2 = static_cast<T*>(row.dx2);
  A* __restrict carry = static_cast<A*>(row.carry);
  A* __restrict alpha = static_cast<A*>(row.sums);
  A* __restrict beta = alpha + row.sum_stride;
  A* __restrict c_bias = beta + row.sum_stride;
  A* __restrict gate_bias = c_bias + row.sum_stride;
  RT_VECTOR_LOOP
  for (int64_t j = 0; j < row.width; ++j) {
    ChannelParameters<A> p = load_parameters(parameters, row.parameter_stride, j);
    RowSums<A> sums = {carry[j], alpha[j], beta[j], c_bias[j], gate_bias[j]};
    sums = BackwardSteps<T, G, 0, Steps>::run(row, x1, x2, c, dh, dx1, dx2, j, sums, p);
    carry[j] = sums.carry;
    alpha[j] = sums.alpha;
    beta[j] = sums.beta;
    c_bias[j] = sums.c_bias;
    gate_bias[j] = sums.gate_bias;
  }
}

template <typename T, Gate G>
constexpr RowKernels row_kernels() {
  return {kUnroll,
          {{forward_row<T, G, false, 1>, forward_row<T, G, false, kUnroll>},
           {forward_row<T, G, true, 1>, forward_row<T, G, true, kUnroll>}},
          {backward_row<T, G, 1>, backward_row<T, G, kUnroll>}};
}

template <Gate G>
RowKernels select_dtype(DType dtype) {
  switch (dtype) {
    case DType::float64: return row_kernels<double, G>();
    case DType::float16: return row_kernels<Half, G>();
    case DType::bfloat16: return row_kernels<BFloat16, G>();
    default: return row_kernels<float, G>();
  }
}

RowKernels select_kernels(DType dtype, Gate gate) {
  switch (gate) {
    case Gate::sigmoid: return select_dtype<Gate::sigmoid>(dtype);
    case Gate::silu: return select_dtype<Gate::silu>(dtype);
    default: return select_dtype<Gate::gelu>(dtype);
  }
}

}  // namespace
}  // namespace rt
