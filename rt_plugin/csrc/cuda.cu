// The CUDA kernels: one thread takes V neighbouring channels of one chain (positions r, r+k, r+2k, ...) of one batch row
// through the sequence, and loads U positions ahead of the one that it calculates.
//
// Threads share nothing: no shared memory, no barriers, no atomics. So the results do not depend on scheduling, and the
// same source runs on a CPU behind the small header of tests/native.
#include <type_traits>

#include "cuda.h"

#ifndef RT_LAUNCH
#define RT_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace rt {
namespace {

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

// How the work is cut up. Wide: 16 bytes (float32) or 8 (half types) a load. Narrow: more threads and a longer
// lookahead, for widths that are no multiple of V and for problems too small to fill the machine.
template <typename T>
struct Wide {
  static constexpr int kChannels = sizeof(T) == 8 ? 2 : 4;
  static constexpr int kAheadForward = 8, kAheadBackward = 4;
  static constexpr int kThreads = 64;
};
template <typename T>
struct Narrow {
  static constexpr int kChannels = 1;
  static constexpr int kAheadForward = 16, kAheadBackward = 8;
  static constexpr int kThreads = 32;
};
constexpr int64_t kWideElements = 1 << 16;  // of one position: below, latency rules and threads count for more

__host__ __device__ int64_t chains(const Problem& problem) { return smaller(problem.step_size, problem.length); }

// Which part of the problem is this thread's. Chains vary slowest, so that neighbouring threads touch neighbouring
// addresses and all threads of a warp but the last make the same number of steps.
struct Lane {
  int64_t chain, row, channel;
  int64_t steps;  // 0: nothing to do
};

__device__ Lane this_lane(const Problem& problem, int channels_per_thread) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t groups = problem.width / channels_per_thread;
  Lane lane;
  lane.channel = index % groups * channels_per_thread;
  lane.row = index / groups % problem.batch;
  lane.chain = index / groups / problem.batch;
  lane.steps = lane.chain < chains(problem) ? ceil_div(problem.length - lane.chain, problem.step_size) : 0;
  return lane;
}

// The V channels of a lane in one tensor, step by step along its chain.
template <typename T, int V>
struct Track {
  using Channels = Pack<std::remove_const_t<T>, V>;
  T* first;
  int64_t stride;

  __device__ Track(T* data, int64_t position_stride, int64_t row_stride, const Problem& problem, const Lane& lane) {
    const int64_t position = problem.reverse ? problem.length - 1 - lane.chain : lane.chain;
    first = data + position * position_stride + lane.row * row_stride + lane.channel;
    stride = (problem.reverse ? -problem.step_size : problem.step_size) * position_stride;
  }

  __device__ Channels load(int64_t step) const { return *reinterpret_cast<const Channels*>(first + step * stride); }
  __device__ void store(int64_t step, const Channels& channels) const {
    *reinterpret_cast<Channels*>(first + step * stride) = channels;
  }
};

template <typename T, int V>
__device__ Track<const T, V> track(const Strided& tensor, int64_t channel_offset, const Problem& problem,
                                   const Lane& lane) {
  return {static_cast<const T*>(tensor.data) + channel_offset, tensor.position_stride, tensor.row_stride, problem, lane};
}
template <typename T, int V>
__device__ Track<T, V> track(void* contiguous, int64_t channels, int64_t channel_offset, const Problem& problem,
                             const Lane& lane) {
  return {static_cast<T*>(contiguous) + channel_offset, problem.batch * channels, channels, problem, lane};
}

template <typename A>
__device__ A load_parameter(const Parameter& parameter, int64_t channel) {
  switch (parameter.dtype) {
    case DType::float64: return A(static_cast<const double*>(parameter.data)[channel]);
    case DType::float16: return A(widen(static_cast<const Half*>(parameter.data)[channel]));
    case DType::bfloat16: return A(widen(static_cast<const BFloat16*>(parameter.data)[channel]));
    default: return A(static_cast<const float*>(parameter.data)[channel]);
  }
}

template <typename A>
__device__ ChannelParameters<A> load_parameters(const Problem& problem, int64_t channel) {
  return {load_parameter<A>(problem.parameters[0], channel), load_parameter<A>(problem.parameters[1], channel),
          load_parameter<A>(problem.parameters[2], channel), load_parameter<A>(problem.parameters[3], channel)};
}

template <typename T, int V>
struct ForwardInput {
  Pack<T, V> x1, x2;
};

template <typename T, Gate G, int V, int U>
__global__ void forward_kernel(Problem problem, T* h_data, T* c_data) {
  using A = CalculationType<T>;
  const Lane lane = this_lane(problem, V);
  if (lane.steps == 0) return;
  const auto x1 = track<T, V>(problem.x12, 0, problem, lane);
  const auto x2 = track<T, V>(problem.x12, problem.width, problem, lane);
  const auto h = track<T, V>(h_data, problem.width, 0, problem, lane);
  const auto c = track<T, V>(c_data ? c_data : h_data, problem.width, 0, problem, lane);
  ChannelParameters<A> p[V];
  A state[V];
  for (int v = 0; v < V; ++v) {
    p[v] = load_parameters<A>(problem, lane.channel + v);
    state[v] = A(0);
  }

  // Loads beyond the last step read the last step again: no branch, no access out of bounds.
  ForwardInput<T, V> now[U], next[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t step = smaller(u, lane.steps - 1);
    next[u] = {x1.load(step), x2.load(step)};
  }
  for (int64_t start = 0; start < lane.steps; start += U) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      now[u] = next[u];
      const int64_t step = smaller(start + U + u, lane.steps - 1);
      next[u] = {x1.load(step), x2.load(step)};
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (start + u >= lane.steps) break;
      Pack<T, V> h_out, c_out;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        state[v] = next_state(A(widen(now[u].x1.at[v])), state[v], p[v]);
        h_out.at[v] = narrow<T>(gated_output<G>(state[v], A(widen(now[u].x2.at[v])), p[v]));
        c_out.at[v] = narrow<T>(state[v]);
      }
      h.store(start + u, h_out);
      if (c_data) c.store(start + u, c_out);
    }
  }
}

template <typename T, int V>
struct BackwardInput {
  Pack<T, V> dh, x1, x2, previous;  // previous: c[i-k]
};

template <typename T, int V>
struct BackwardTracks {
  Track<const T, V> dh, x1, x2, c;

  __device__ BackwardInput<T, V> load(int64_t step) const {
    return {dh.load(step), x1.load(step), x2.load(step), step ? c.load(step - 1) : Pack<T, V>{}};
  }
};

// Writes dx12, and to `partial` (rows of (4, d')) what this chain of this batch row adds to the parameters' gradients.
template <typename T, Gate G, int V, int U>
__global__ void backward_kernel(Problem problem, Strided dh, const T* c, T* dx12, CalculationType<T>* partial) {
  using A = CalculationType<T>;
  const Lane lane = this_lane(problem, V);
  if (lane.steps == 0) return;
  const int64_t width = problem.width;
  const Strided saved = {c, problem.batch * width, width};
  const BackwardTracks<T, V> in = {track<T, V>(dh, 0, problem, lane), track<T, V>(problem.x12, 0, problem, lane),
                                   track<T, V>(problem.x12, width, problem, lane),
                                   track<T, V>(saved, 0, problem, lane)};
  const auto dx1 = track<T, V>(dx12, 2 * width, 0, problem, lane);
  const auto dx2 = track<T, V>(dx12, 2 * width, width, problem, lane);
  ChannelParameters<A> p[V];
  A carry[V], sums[kParameters][V];
  for (int v = 0; v < V; ++v) {
    p[v] = load_parameters<A>(problem, lane.channel + v);
    carry[v] = sums[0][v] = sums[1][v] = sums[2][v] = sums[3][v] = A(0);
  }

  BackwardInput<T, V> now[U], next[U];
#pragma unroll
  for (int u = 0; u < U; ++u) next[u] = in.load(larger(lane.steps - 1 - u, 0));
  for (int64_t last = lane.steps - 1; last >= 0; last -= U) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      now[u] = next[u];
      next[u] = in.load(larger(last - U - u, 0));
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (last - u < 0) break;
      Pack<T, V> dx1_out, dx2_out;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const StepGradients<A> d =
            step_backward<G>(A(widen(now[u].dh.at[v])), A(widen(now[u].x1.at[v])), A(widen(now[u].x2.at[v])),
                             A(widen(now[u].previous.at[v])), carry[v], p[v]);
        dx1_out.at[v] = narrow<T>(d.x1);
        dx2_out.at[v] = narrow<T>(d.x2);
        carry[v] = d.previous;
        sums[0][v] += d.alpha;
        sums[1][v] += d.beta;
        sums[2][v] += d.c_bias;
        sums[3][v] += d.x2;
      }
      dx1.store(last - u, dx1_out);
      dx2.store(last - u, dx2_out);
    }
  }

  A* out = partial + (lane.chain * problem.batch + lane.row) * kParameters * width + lane.channel;
  for (int q = 0; q < kParameters; ++q) {
    for (int v = 0; v < V; ++v) out[q * width + v] = sums[q][v];
  }
}

template <typename A>
__device__ void store_gradient(const ParameterGradient& out, int64_t channel, A value) {
  switch (out.dtype) {
    case DType::float64: static_cast<double*>(out.data)[channel] = double(value); return;
    case DType::float16: static_cast<Half*>(out.data)[channel] = narrow<Half>(float(value)); return;
    case DType::bfloat16: static_cast<BFloat16*>(out.data)[channel] = narrow<BFloat16>(float(value)); return;
    default: static_cast<float*>(out.data)[channel] = float(value); return;
  }
}

struct Gradients {
  ParameterGradient of[kParameters];
};

// Sums the rows of `partial` one after the other: one thread per parameter and channel. The loads of 16 rows are under
// way at a time; the order of the additions stays.
template <typename A>
__global__ void sum_kernel(const A* partial, int64_t rows, int64_t width, Gradients gradients) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= kParameters * width) return;
  A sum = A(0);
#pragma unroll 16
  for (int64_t row = 0; row < rows; ++row) sum += partial[row * kParameters * width + index];
  store_gradient(gradients.of[index / width], index % width, sum);
}

// ---- launching

bool aligned(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

bool aligned(const Strided& tensor, int64_t channels, int64_t bytes) {
  return aligned(tensor.data, bytes) && tensor.position_stride % channels == 0 && tensor.row_stride % channels == 0;
}

template <typename T>
bool takes_wide(const Problem& problem) {
  constexpr int64_t channels = Wide<T>::kChannels;
  return problem.width % channels == 0 && aligned(problem.x12, channels, channels * sizeof(T)) &&
         chains(problem) * problem.batch * problem.width >= kWideElements;
}

bool empty(const Problem& problem) { return !problem.length || !problem.batch || !problem.width; }

template <typename Shape>
int64_t block_count(const Problem& problem) {
  return ceil_div(chains(problem) * problem.batch * (problem.width / Shape::kChannels), Shape::kThreads);
}

template <typename T, Gate G, typename Shape>
void launch_forward(const Problem& problem, T* h, T* c, cudaStream_t stream) {
  RT_LAUNCH((forward_kernel<T, G, Shape::kChannels, Shape::kAheadForward>), block_count<Shape>(problem),
            Shape::kThreads, stream, problem, h, c);
}

template <typename T, Gate G, typename Shape>
void launch_backward(const Problem& problem, const Strided& dh, const T* c, T* dx12, CalculationType<T>* partial,
                     cudaStream_t stream) {
  RT_LAUNCH((backward_kernel<T, G, Shape::kChannels, Shape::kAheadBackward>), block_count<Shape>(problem),
            Shape::kThreads, stream, problem, dh, c, dx12, partial);
}

template <typename T, Gate G>
void forward(const Problem& problem, void* h, void* c, cudaStream_t stream) {
  auto launch = takes_wide<T>(problem) ? launch_forward<T, G, Wide<T>> : launch_forward<T, G, Narrow<T>>;
  launch(problem, static_cast<T*>(h), static_cast<T*>(c), stream);
}

template <typename T, Gate G>
void backward(const Problem& problem, const Strided& dh, const void* c, void* dx12, void* partial,
              cudaStream_t stream) {
  constexpr int64_t channels = Wide<T>::kChannels;
  const bool wide = takes_wide<T>(problem) && aligned(dh, channels, channels * sizeof(T)) &&
                    aligned(c, channels * sizeof(T));
  auto launch = wide ? launch_backward<T, G, Wide<T>> : launch_backward<T, G, Narrow<T>>;
  launch(problem, dh, static_cast<const T*>(c), static_cast<T*>(dx12), static_cast<CalculationType<T>*>(partial),
         stream);
}

// Calls function.template run<T, G>() for the type and the gate of the problem.
template <typename T, typename Function>
void dispatch_gate(Gate gate, const Function& function) {
  switch (gate) {
    case Gate::sigmoid: return function.template run<T, Gate::sigmoid>();
    case Gate::silu: return function.template run<T, Gate::silu>();
    default: return function.template run<T, Gate::gelu>();
  }
}
template <typename Function>
void dispatch(const Problem& problem, const Function& function) {
  switch (problem.dtype) {
    case DType::float64: return dispatch_gate<double>(problem.gate, function);
    case DType::float16: return dispatch_gate<Half>(problem.gate, function);
    case DType::bfloat16: return dispatch_gate<BFloat16>(problem.gate, function);
    default: return dispatch_gate<float>(problem.gate, function);
  }
}

struct Forward {
  const Problem& problem;
  void *h, *c;
  cudaStream_t stream;

  template <typename T, Gate G>
  void run() const {
    forward<T, G>(problem, h, c, stream);
  }
};

struct Backward {
  const Problem& problem;
  const Strided& dh;
  const void* c;
  void *dx12, *partial;
  cudaStream_t stream;

  template <typename T, Gate G>
  void run() const {
    backward<T, G>(problem, dh, c, dx12, partial, stream);
  }
};

template <typename A>
void launch_sum(const Problem& problem, const void* partial, int64_t rows, const Gradients& gradients,
                cudaStream_t stream) {
  constexpr int threads = 128;
  RT_LAUNCH((sum_kernel<A>), ceil_div(kParameters * problem.width, threads), threads, stream,
            static_cast<const A*>(partial), rows, problem.width, gradients);
}

}  // namespace

int64_t cuda_partial_rows(const Problem& problem) { return chains(problem) * problem.batch; }

cudaError_t cuda_forward(const Problem& problem, void* h, void* c, cudaStream_t stream) {
  if (empty(problem)) return cudaSuccess;
  dispatch(problem, Forward{problem, h, c, stream});
  return cudaGetLastError();
}

cudaError_t cuda_backward(const Problem& problem, const Strided& dh, const void* c, void* dx12, void* partial,
                          const ParameterGradient (&gradients)[kParameters], cudaStream_t stream) {
  if (!problem.width) return cudaSuccess;
  if (!empty(problem)) {
    dispatch(problem, Backward{problem, dh, c, dx12, partial, stream});
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  const int64_t rows = empty(problem) ? 0 : cuda_partial_rows(problem);
  const Gradients out = {{gradients[0], gradients[1], gradients[2], gradients[3]}};
  auto launch = problem.dtype == DType::float64 ? launch_sum<double> : launch_sum<float>;
  launch(problem, partial, rows, out, stream);
  return cudaGetLastError();
}

}  // namespace rt
