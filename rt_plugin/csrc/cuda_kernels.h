// The CUDA kernels: one thread takes V neighbouring channels of one batch row through a chain of positions (r, r+k,
// r+2k, ...), then through the next chain that is its own, and loads U positions ahead of those that it calculates.
//
// Threads share nothing: no shared memory, no barriers, no atomics. So the results depend neither on scheduling nor on
// V, U and the size of a block, and the same source runs on a CPU behind the small header of tests/native.
#pragma once

#include <type_traits>

#include "cuda.h"

#ifndef RT_LAUNCH
#define RT_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace rt {
namespace {

// V neighbouring channels, the unit of a load and a store.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

// The same bytes while they wait in registers: whole words, because half types would be moved one by one.
template <int kBytes>
struct alignas(kBytes) Words {
  uint32_t word[kBytes / 4];
};
template <>
struct alignas(2) Words<2> {
  uint16_t half;
};
template <typename T, int V>
using Waiting = Words<sizeof(T) * V>;

template <typename T, int V, typename A>
__device__ void widen_all(const Waiting<T, V>& from, A (&to)[V]) {
  const auto pack = bit_cast<Pack<T, V>>(from);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if constexpr (std::is_same<T, BFloat16>::value && V > 1) {
      to[v] = bit_cast<float>(v % 2 ? from.word[v / 2] & 0xffff0000u : from.word[v / 2] << 16);
    } else {
      to[v] = A(widen(pack.at[v]));
    }
  }
}

// ---- what a launch is asked to do

// Chains are shared out so that about this many elements are under way: several times what a large device has room for.
constexpr int64_t kElementsUnderWay = int64_t(1) << 20;

// The four parameters' types: all that of x12, all float32, or some this and some that, which takes V = 1.
enum class ParameterTypes { stored, float32, mixed };

// A problem with what the threads would otherwise have to divide for.
struct Task : Problem {
  int64_t chains;  // k, or L where that is smaller
  int64_t groups;  // of chains: g takes the chains g, g + groups, g + 2 groups, ...
  int64_t steps, longer;  // a chain has `steps` positions, the first `longer` chains one more
  ParameterTypes parameter_types;
};

ParameterTypes parameter_types(const Problem& problem) {
  const DType dtype = problem.parameters[0].dtype;
  for (const Parameter& p : problem.parameters) {
    if (p.dtype != dtype) return ParameterTypes::mixed;
  }
  return dtype == problem.dtype ? ParameterTypes::stored : ParameterTypes::float32;
}

// The groups follow from the problem alone, never from V: they decide in which order the parameters' gradients are
// summed, and how much memory their partial sums take.
Task make_task(const Problem& problem) {
  Task task = {problem, smaller(problem.step_size, problem.length), 1, 0, 0, parameter_types(problem)};
  if (!task.chains || !task.batch || !task.width) return task;
  const int64_t wanted = smaller(task.chains, ceil_div(kElementsUnderWay, task.batch * task.width));
  task.groups = ceil_div(task.chains, ceil_div(task.chains, wanted));
  task.steps = task.length / task.chains;
  task.longer = task.length % task.chains;
  return task;
}

// Which part of the task is this thread's. Groups of chains vary slowest, so that neighbouring threads touch
// neighbouring addresses and all threads of a warp but the last make the same number of steps.
struct Lane {
  int64_t group, row, channel;
};

__device__ Lane this_lane(const Task& task, int channels_per_thread) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t packs = task.width / channels_per_thread;
  return {index / packs / task.batch, index / packs % task.batch, index % packs * channels_per_thread};
}

// V channels of one tensor that move along a chain.
template <typename T, int V>
struct Cursor {
  T* at;
  int64_t stride;

  // `position` counts in the order of calculation, and so does `stride_positions`, the way from step to step.
  __device__ Cursor(T* data, int64_t position_stride, int64_t row_stride, const Task& task, const Lane& lane,
                    int64_t position, int64_t stride_positions) {
    at = data + (task.reverse ? task.length - 1 - position : position) * position_stride + lane.row * row_stride +
         lane.channel;
    stride = (task.reverse ? -stride_positions : stride_positions) * position_stride;
  }

  __device__ Waiting<T, V> load(int64_t offset = 0) const {
    return *reinterpret_cast<const Waiting<T, V>*>(at + offset);
  }
  __device__ void store(const Pack<T, V>& channels, int64_t offset = 0) const {
    *reinterpret_cast<Pack<T, V>*>(at + offset) = channels;
  }
  __device__ void move() { at += stride; }
};

template <typename T, int V>
__device__ Cursor<const T, V> cursor(const Strided& tensor, const Task& task, const Lane& lane, int64_t position,
                                     int64_t stride_positions) {
  return {static_cast<const T*>(tensor.data),
          tensor.position_stride,
          tensor.row_stride,
          task,
          lane,
          position,
          stride_positions};
}
template <typename T, int V>
__device__ Cursor<T, V> cursor(T* contiguous, int64_t channels, const Task& task, const Lane& lane, int64_t position,
                               int64_t stride_positions) {
  return {contiguous, task.batch * channels, channels, task, lane, position, stride_positions};
}

// ---- parameters

template <typename A>
struct KernelParametersOf {
  using type = FoldedParameters;
};
template <>
struct KernelParametersOf<double> {
  using type = ChannelParameters<double>;
};
template <typename A>
using KernelParameters = typename KernelParametersOf<A>::type;

// All loads first, so that they wait for memory together.
template <typename P, typename A, int V>
__device__ void load_packs(const Task& task, int64_t channel, KernelParameters<A> (&out)[V]) {
  Pack<P, V> raw[kParameters];
#pragma unroll
  for (int q = 0; q < kParameters; ++q) {
    raw[q] = *reinterpret_cast<const Pack<P, V>*>(static_cast<const P*>(task.parameters[q].data) + channel);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    out[v] = KernelParameters<A>{ChannelParameters<A>{A(widen(raw[0].at[v])), A(widen(raw[1].at[v])),
                                                      A(widen(raw[2].at[v])), A(widen(raw[3].at[v]))}};
  }
}

template <typename T, typename A>
__device__ A load_parameter(const Parameter& parameter, int64_t channel) {
  return parameter.dtype == DType::float32 ? A(static_cast<const float*>(parameter.data)[channel])
                                           : A(widen(static_cast<const T*>(parameter.data)[channel]));
}

template <typename T, int V, typename A = CalculationType<T>>
__device__ void load_parameters(const Task& task, int64_t channel, KernelParameters<A> (&out)[V]) {
  if (task.parameter_types == ParameterTypes::stored) return load_packs<T, A, V>(task, channel, out);
  if constexpr (V == 1) {
    if (task.parameter_types == ParameterTypes::mixed) {
      A p[kParameters];
      for (int q = 0; q < kParameters; ++q) p[q] = load_parameter<T, A>(task.parameters[q], channel);
      out[0] = KernelParameters<A>{ChannelParameters<A>{p[0], p[1], p[2], p[3]}};
      return;
    }
  }
  load_packs<float, A, V>(task, channel, out);
}

// ---- forward

template <typename T, int V>
struct ForwardInput {
  Waiting<T, V> x1, x2;
};

// The two outputs of a chain; c_data may be null.
template <typename T, Gate G, int V>
struct ForwardStep {
  using A = CalculationType<T>;
  Cursor<T, V> h, c;
  bool save;
  A state[V];

  __device__ ForwardStep(const Task& task, const Lane& lane, int64_t chain, T* h_data, T* c_data)
      : h(cursor<T, V>(h_data, task.width, task, lane, chain, task.step_size)),
        c(cursor<T, V>(c_data ? c_data : h_data, task.width, task, lane, chain, task.step_size)),
        save(c_data != nullptr) {
    for (int v = 0; v < V; ++v) state[v] = A(0);
  }

  __device__ void run(const ForwardInput<T, V>& in, const KernelParameters<A> (&p)[V]) {
    A x1[V], x2[V];
    widen_all<T, V>(in.x1, x1);
    widen_all<T, V>(in.x2, x2);
    Pack<T, V> h_out, c_out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      state[v] = next_state(x1[v], state[v], p[v]);
      h_out.at[v] = narrow<T>(gated_output<G>(state[v], x2[v], p[v]));
      c_out.at[v] = narrow<T>(state[v]);
    }
    h.store(h_out);
    h.move();
    if (save) c.store(c_out);
    c.move();
  }
};

template <typename T, Gate G, int V, int U>
__global__ void forward_kernel(Task task, T* h_data, T* c_data) {
  const Lane lane = this_lane(task, V);
  if (lane.group >= task.groups) return;
  KernelParameters<CalculationType<T>> p[V];
  for (int64_t chain = lane.group; chain < task.chains; chain += task.groups) {
    auto x12 = cursor<T, V>(task.x12, task, lane, chain, task.step_size);
    auto load = [&] {
      const ForwardInput<T, V> loaded = {x12.load(), x12.load(task.width)};
      x12.move();
      return loaded;
    };
    int64_t left = task.steps + (chain < task.longer);
    ForwardInput<T, V> now[U], next[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < left) next[u] = load();
    }
    if (chain == lane.group) load_parameters<T, V>(task, lane.channel, p);  // while the first positions are under way
    ForwardStep<T, G, V> step(task, lane, chain, h_data, c_data);

    for (; left >= 2 * U; left -= U) {  // nothing to check in a block that another whole block follows
#pragma unroll
      for (int u = 0; u < U; ++u) {
        now[u] = next[u];
        next[u] = load();
      }
#pragma unroll
      for (int u = 0; u < U; ++u) step.run(now[u], p);
    }
    for (; left > 0; left -= U) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        now[u] = next[u];
        if (U + u < left) next[u] = load();
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < left) step.run(now[u], p);
      }
    }
  }
}

// ---- backward

template <typename T, int V>
struct BackwardInput {
  Waiting<T, V> dh, x1, x2, previous;  // previous: c[i-k]
};

// The inputs of a chain, from its last step to its first.
template <typename T, int V>
struct BackwardInputs {
  int64_t width;
  Cursor<const T, V> dh, x12, c;

  __device__ BackwardInputs(const Task& task, const Lane& lane, int64_t last, const Strided& dh_data, const T* c_data)
      : width(task.width),
        dh(cursor<T, V>(dh_data, task, lane, last, -task.step_size)),
        x12(cursor<T, V>(task.x12, task, lane, last, -task.step_size)),
        c(cursor<const T, V>(c_data, task.width, task, lane, last, -task.step_size)) {
    c.move();
  }

  __device__ BackwardInput<T, V> load(bool has_previous = true) {
    const BackwardInput<T, V> loaded = {dh.load(), x12.load(), x12.load(width),
                                        has_previous ? c.load() : Waiting<T, V>{}};
    dh.move();
    x12.move();
    c.move();
    return loaded;
  }
};

template <typename T, Gate G, int V>
struct BackwardStep {
  using A = CalculationType<T>;
  int64_t width;
  Cursor<T, V> dx12;
  A carry[V];

  __device__ BackwardStep(const Task& task, const Lane& lane, int64_t last, T* dx12_data)
      : width(task.width), dx12(cursor<T, V>(dx12_data, 2 * task.width, task, lane, last, -task.step_size)) {
    for (int v = 0; v < V; ++v) carry[v] = A(0);
  }

  __device__ void run(const BackwardInput<T, V>& in, const KernelParameters<A> (&p)[V], A (&sums)[kParameters][V]) {
    A dh[V], x1[V], x2[V], previous[V];
    widen_all<T, V>(in.dh, dh);
    widen_all<T, V>(in.x1, x1);
    widen_all<T, V>(in.x2, x2);
    widen_all<T, V>(in.previous, previous);
    Pack<T, V> dx1, dx2;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const StepGradients<A> d = step_backward<G>(dh[v], x1[v], x2[v], previous[v], carry[v], p[v]);
      dx1.at[v] = narrow<T>(d.x1);
      dx2.at[v] = narrow<T>(d.x2);
      carry[v] = d.previous;
      sums[0][v] += d.alpha;
      sums[1][v] += d.beta;
      sums[2][v] += d.c_bias;
      sums[3][v] += d.x2;
    }
    dx12.store(dx1);
    dx12.store(dx2, width);
    dx12.move();
  }
};

// Writes dx12, and to `partial` (rows of (4, d')) what this group of chains of this batch row adds to the parameters'
// gradients.
template <typename T, Gate G, int V, int U>
__global__ void backward_kernel(Task task, Strided dh, const T* c, T* dx12, CalculationType<T>* partial) {
  using A = CalculationType<T>;
  const Lane lane = this_lane(task, V);
  if (lane.group >= task.groups) return;
  KernelParameters<A> p[V];
  A sums[kParameters][V] = {};
  A* out = partial + (lane.group * task.batch + lane.row) * kParameters * task.width + lane.channel;
  for (int64_t chain = lane.group; chain < task.chains; chain += task.groups) {
    int64_t left = task.steps + (chain < task.longer);
    const int64_t last = chain + (left - 1) * task.step_size;
    BackwardInputs<T, V> in(task, lane, last, dh, c);
    BackwardInput<T, V> now[U], next[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < left) next[u] = in.load(u + 1 < left);
    }
    if (chain == lane.group) load_parameters<T, V>(task, lane.channel, p);
    BackwardStep<T, G, V> step(task, lane, last, dx12);

    for (; left > 2 * U; left -= U) {  // the first step of all, which has no c[i-k], is not among those loaded
#pragma unroll
      for (int u = 0; u < U; ++u) {
        now[u] = next[u];
        next[u] = in.load();
      }
#pragma unroll
      for (int u = 0; u < U; ++u) step.run(now[u], p, sums);
    }
    for (; left > 0; left -= U) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        now[u] = next[u];
        if (U + u < left) next[u] = in.load(U + u + 1 < left);
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < left) step.run(now[u], p, sums);
      }
    }
  }

  for (int q = 0; q < kParameters; ++q) {
    for (int v = 0; v < V; ++v) out[q * task.width + v] = sums[q][v];
  }
}

// ---- sums of the parameters' gradients

struct Gradients {
  ParameterGradient of[kParameters];
};

template <typename A>
__device__ void store_gradient(const ParameterGradient& out, int64_t channel, A value) {
  switch (out.dtype) {
    case DType::float64: static_cast<double*>(out.data)[channel] = double(value); return;
    case DType::float16: static_cast<Half*>(out.data)[channel] = narrow<Half>(float(value)); return;
    case DType::bfloat16: static_cast<BFloat16*>(out.data)[channel] = narrow<BFloat16>(float(value)); return;
    default: static_cast<float*>(out.data)[channel] = float(value); return;
  }
}

// One number of each row, one row after the other. The loads of 16 rows are under way at a time; the order of the
// additions stays.
template <typename A>
__device__ A sum_rows(const A* first, int64_t rows, int64_t stride) {
  A sum = A(0);
#pragma unroll 16
  for (int64_t row = 0; row < rows; ++row) sum += first[row * stride];
  return sum;
}

// Sums every `part` rows into the first of them: one thread per part and column.
template <typename A>
__global__ void sum_parts_kernel(A* partial, int64_t rows, int64_t part, int64_t columns) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t first = index / columns * part;
  if (first >= rows) return;
  A* column = partial + first * columns + index % columns;
  *column = sum_rows(column, smaller(part, rows - first), columns);
}

// Sums the rows 0, part, 2 part, ... into the gradients: one thread per column.
template <typename A>
__global__ void sum_kernel(const A* partial, int64_t rows, int64_t part, int64_t width, Gradients gradients) {
  const int64_t column = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= kParameters * width) return;
  const A sum = sum_rows(partial + column, ceil_div(rows, part), part * kParameters * width);
  store_gradient(gradients.of[column / width], column % width, sum);
}

}  // namespace
}  // namespace rt
