// The inner loops of the CPU kernels: a few positions of one run of neighbouring channels.
//
// Included by one source file per instruction set (cpu_rows_*.cpp), each compiled with its own flags. Nothing here may
// have external linkage, or the linker could hand AVX-512 code to a machine without it. `Lanes` (lanes_*.h) says how
// many channels are calculated at a time, and how they are loaded and stored. Runs of the next positions are
// prefetched, those to be written too, because the machine's own prefetcher stops at the end of every page.
#pragma once

#include "cpu.h"
#include "lanes_scalar.h"

namespace rt {
namespace {

// Positions that one backward pass over the channels covers: parameters, carry and sums are then loaded and stored once
// for all of them. Forward there is less to load, and one position at a time leaves more independent work in flight.
constexpr int kUnroll = 4;

// Calls body(first channel, count of channels) for whole vectors, then once for what remains.
template <typename Lanes, typename Body>
RT_INLINE void for_each_vector(int64_t width, const Body& body) {
  int64_t j = 0;
  RT_VECTOR_LOOP
  for (; j + Lanes::kCount <= width; j += Lanes::kCount) body(j, Lanes::kCount);
  if (Lanes::kCount > 1 && j < width) body(j, width - j);
}

template <typename Lanes>
RT_INLINE ChannelParameters<typename Lanes::Value> load_parameters(const typename Lanes::Element* from, int64_t stride,
                                                                   int64_t count) {
  return {Lanes::load(from, count), Lanes::load(from + stride, count), Lanes::load(from + 2 * stride, count),
          Lanes::load(from + 3 * stride, count)};
}

template <typename Lanes, typename T, Gate G, bool Save>
void forward_row(const ForwardRow& row) {
  using A = typename Lanes::Element;
  using V = typename Lanes::Value;
  const T* __restrict x1 = static_cast<const T*>(row.x1);
  const T* __restrict x2 = static_cast<const T*>(row.x2);
  const A* __restrict parameters = static_cast<const A*>(row.parameters);
  const int64_t parameter_stride = row.parameter_stride;
  const int64_t ahead = row.x12_stride, out_ahead = row.out_stride;
  A* __restrict state = static_cast<A*>(row.state);
  T* __restrict h = static_cast<T*>(row.h);
  T* __restrict c = static_cast<T*>(row.c);
  for_each_vector<Lanes>(row.width, [&](int64_t j, int64_t count) RT_INLINE_LAMBDA {
    ChannelParameters<V> p = load_parameters<Lanes>(parameters + j, parameter_stride, count);
    Lanes::prefetch(x1 + ahead + j);
    Lanes::prefetch(x2 + ahead + j);
    Lanes::prefetch_to_write(h + out_ahead + j);
    if (Save) Lanes::prefetch_to_write(c + out_ahead + j);
    V c_j = next_state(Lanes::load(x1 + j, count), Lanes::load(state + j, count), p);
    V h_j = gated_output<G>(c_j, Lanes::load(x2 + j, count), p);
    Lanes::store(state + j, c_j, count);
    Lanes::store(h + j, h_j, count);
    if (Save) Lanes::store(c + j, c_j, count);
  });
}

template <typename V>
struct RowSums {
  V carry, alpha, beta, c_bias, gate_bias;
};

template <typename T>
struct BackwardPointers {
  const T* __restrict x1;
  const T* __restrict x2;
  const T* __restrict c;
  const T* __restrict dh;
  T* __restrict dx1;
  T* __restrict dx2;
};

// Positions `Step` to `Steps - 1` of `count` channels from j on. A recursion, because compilers vectorise the loop over
// the channels only when there is no loop inside.
template <typename Lanes, typename T, Gate G, int Step, int Steps>
struct BackwardSteps {
  using V = typename Lanes::Value;
  static RT_INLINE RowSums<V> run(const BackwardRow& row, const BackwardPointers<T>& at, int64_t j, int64_t count,
                                  RowSums<V> sums, const ChannelParameters<V>& p) {
    const int64_t in = Step * row.x12_stride + j, out = Step * row.dx12_stride + j;
    Lanes::prefetch(at.x1 + in + Steps * row.x12_stride);
    Lanes::prefetch(at.x2 + in + Steps * row.x12_stride);
    Lanes::prefetch(at.dh + (Step + Steps) * row.dh_stride + j);
    Lanes::prefetch(at.c + (Step + Steps) * row.c_stride + j);
    Lanes::prefetch_to_write(at.dx1 + out + Steps * row.dx12_stride);
    Lanes::prefetch_to_write(at.dx2 + out + Steps * row.dx12_stride);
    StepGradients<V> d = step_backward<G>(Lanes::load(at.dh + Step * row.dh_stride + j, count),
                                          Lanes::load(at.x1 + in, count), Lanes::load(at.x2 + in, count),
                                          Lanes::load(at.c + Step * row.c_stride + j, count), sums.carry, p);
    Lanes::store(at.dx1 + out, d.x1, count);
    Lanes::store(at.dx2 + out, d.x2, count);
    sums = {d.previous, sums.alpha + d.alpha, sums.beta + d.beta, sums.c_bias + d.c_bias, sums.gate_bias + d.x2};
    return BackwardSteps<Lanes, T, G, Step + 1, Steps>::run(row, at, j, count, sums, p);
  }
};
template <typename Lanes, typename T, Gate G, int Steps>
struct BackwardSteps<Lanes, T, G, Steps, Steps> {
  using V = typename Lanes::Value;
  static RT_INLINE RowSums<V> run(const BackwardRow&, const BackwardPointers<T>&, int64_t, int64_t, RowSums<V> sums,
                                  const ChannelParameters<V>&) {
    return sums;
  }
};

template <typename Lanes, typename T, Gate G, int Steps>
void backward_row(const BackwardRow& argument) {
  using A = typename Lanes::Element;
  using V = typename Lanes::Value;
  const BackwardRow row = argument;
  const BackwardPointers<T> at = {static_cast<const T*>(row.x1), static_cast<const T*>(row.x2),
                                  static_cast<const T*>(row.c),  static_cast<const T*>(row.dh),
                                  static_cast<T*>(row.dx1),      static_cast<T*>(row.dx2)};
  const A* __restrict parameters = static_cast<const A*>(row.parameters);
  A* __restrict carry = static_cast<A*>(row.carry);
  A* __restrict alpha = static_cast<A*>(row.sums);
  A* __restrict beta = alpha + row.sum_stride;
  A* __restrict c_bias = beta + row.sum_stride;
  A* __restrict gate_bias = c_bias + row.sum_stride;
  for_each_vector<Lanes>(row.width, [&](int64_t j, int64_t count) RT_INLINE_LAMBDA {
    ChannelParameters<V> p = load_parameters<Lanes>(parameters + j, row.parameter_stride, count);
    RowSums<V> sums = {Lanes::load(carry + j, count), Lanes::load(alpha + j, count), Lanes::load(beta + j, count),
                       Lanes::load(c_bias + j, count), Lanes::load(gate_bias + j, count)};
    sums = BackwardSteps<Lanes, T, G, 0, Steps>::run(row, at, j, count, sums, p);
    Lanes::store(carry + j, sums.carry, count);
    Lanes::store(alpha + j, sums.alpha, count);
    Lanes::store(beta + j, sums.beta, count);
    Lanes::store(c_bias + j, sums.c_bias, count);
    Lanes::store(gate_bias + j, sums.gate_bias, count);
  });
}

template <typename Lanes, typename T, Gate G>
constexpr RowKernels kernels_of() {
  return {kUnroll,
          {forward_row<Lanes, T, G, false>, forward_row<Lanes, T, G, true>},
          {backward_row<Lanes, T, G, 1>, backward_row<Lanes, T, G, kUnroll>}};
}

template <typename FloatLanes, typename BFloat16Lanes, Gate G>
RowKernels select_dtype(DType dtype) {
  switch (dtype) {
    case DType::float64: return kernels_of<ScalarLanes<double>, double, G>();
    case DType::float16: return kernels_of<FloatLanes, Half, G>();
    case DType::bfloat16: return kernels_of<BFloat16Lanes, BFloat16, G>();
    default: return kernels_of<FloatLanes, float, G>();
  }
}

template <typename FloatLanes, typename BFloat16Lanes>
RowKernels select_kernels(DType dtype, Gate gate) {
  switch (gate) {
    case Gate::sigmoid: return select_dtype<FloatLanes, BFloat16Lanes, Gate::sigmoid>(dtype);
    case Gate::silu: return select_dtype<FloatLanes, BFloat16Lanes, Gate::silu>(dtype);
    default: return select_dtype<FloatLanes, BFloat16Lanes, Gate::gelu>(dtype);
  }
}

}  // namespace
}  // namespace rt
