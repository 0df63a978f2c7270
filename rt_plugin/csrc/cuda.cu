// Which kernel with which shape takes a problem, and its launch.
#include "cuda_kernels.h"

namespace rt {
namespace {

// How a kernel is cut up: channels a thread, positions loaded ahead, threads a block, and from how many elements a
// position (k chains, B rows, d' channels) on. More channels a thread are fewer instructions an element, fewer are more
// threads, which hide the waiting for memory. Chosen by counting instructions and registers: half types take at most
// 128 registers, the last backward 168, so that 16 or 12 warps fit a multiprocessor. `scripts/tune_cuda.py` measures.
struct Shape {
  int channels, ahead, threads;
  int64_t from_elements;
};
constexpr Shape kForwardShapes[] = {{1, 16, 32, 0}, {2, 8, 64, 32 << 10}, {4, 8, 64, 256 << 10}};
constexpr Shape kBackwardShapes[] = {{1, 8, 32, 0}, {2, 6, 64, 32 << 10}, {4, 4, 64, 256 << 10}};
constexpr int kShapes = 3;

// Wider types take fewer channels and positions, for what waits in registers: bytes of one tensor.
constexpr int kLoadBytes = 16, kForwardBytesAhead = 64, kBackwardBytesAhead = 32;

constexpr int at_most(int count, int limit) { return count < limit ? count : limit; }

template <typename T>
constexpr int channels_of(const Shape& shape) {
  return at_most(shape.channels, kLoadBytes / int(sizeof(T)));
}
template <typename T>
constexpr int ahead_of(const Shape& shape, int bytes) {
  return at_most(shape.ahead, bytes / (channels_of<T>(shape) * int(sizeof(T))));
}

bool aligned(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// Whether every load and store of `channels` neighbouring channels is aligned.
template <typename T>
bool aligned(const Strided& tensor, int64_t channels) {
  return aligned(tensor.data, channels * sizeof(T)) && tensor.position_stride % channels == 0 &&
         tensor.row_stride % channels == 0;
}

bool aligned(const Parameter& parameter, int64_t channels) {
  const int64_t size = parameter.dtype == DType::float64 ? 8 : parameter.dtype == DType::float32 ? 4 : 2;
  return aligned(parameter.data, channels * size);
}

template <typename T>
bool fits(const Shape& shape, const Task& task) {
  const int64_t channels = channels_of<T>(shape);
  bool fits = task.chains * task.batch * task.width >= shape.from_elements && task.width % channels == 0 &&
              task.parameter_types != ParameterTypes::mixed && aligned<T>(task.x12, channels);
  for (const Parameter& p : task.parameters) fits = fits && aligned(p, channels);
  return fits;
}

int64_t block_count(const Task& task, int64_t channels, int64_t threads) {
  return ceil_div(task.groups * task.batch * (task.width / channels), threads);
}

// The launches below take shape I where it fits, else the next narrower one; the narrowest fits everything.

template <typename T, Gate G, int I = kShapes - 1>
void forward(const Task& task, T* h, T* c, cudaStream_t stream) {
  constexpr Shape shape = kForwardShapes[I];
  constexpr int channels = channels_of<T>(shape), ahead = ahead_of<T>(shape, kForwardBytesAhead);
  if constexpr (I > 0) {
    if (!fits<T>(shape, task)) return forward<T, G, I - 1>(task, h, c, stream);
  }
  RT_LAUNCH((forward_kernel<T, G, channels, ahead>), block_count(task, channels, shape.threads), shape.threads, stream,
            task, h, c);
}

template <typename T, Gate G, int I = kShapes - 1>
void backward(const Task& task, const Strided& dh, const T* c, T* dx12, CalculationType<T>* partial,
              cudaStream_t stream) {
  constexpr Shape shape = kBackwardShapes[I];
  constexpr int channels = channels_of<T>(shape), ahead = ahead_of<T>(shape, kBackwardBytesAhead);
  if constexpr (I > 0) {
    if (!fits<T>(shape, task) || !aligned<T>(dh, channels) || !aligned(c, channels * sizeof(T))) {
      return backward<T, G, I - 1>(task, dh, c, dx12, partial, stream);
    }
  }
  RT_LAUNCH((backward_kernel<T, G, channels, ahead>), block_count(task, channels, shape.threads), shape.threads, stream,
            task, dh, c, dx12, partial);
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
  const Task& task;
  void *h, *c;
  cudaStream_t stream;

  template <typename T, Gate G>
  void run() const {
    forward<T, G>(task, static_cast<T*>(h), static_cast<T*>(c), stream);
  }
};

struct Backward {
  const Task& task;
  const Strided& dh;
  const void* c;
  void *dx12, *partial;
  cudaStream_t stream;

  template <typename T, Gate G>
  void run() const {
    backward<T, G>(task, dh, static_cast<const T*>(c), static_cast<T*>(dx12), static_cast<CalculationType<T>*>(partial),
                   stream);
  }
};

// Rows that are summed first, each such part by threads of its own: about as many as there are parts then.
int64_t rows_of_part(int64_t rows) {
  if (rows <= 32) return 1;
  int64_t part = 2;
  while (part * part < rows) part *= 2;
  return part;
}

template <typename A>
void sum(const Problem& problem, A* partial, int64_t rows, const Gradients& gradients, cudaStream_t stream) {
  constexpr int threads = 128;
  const int64_t columns = kParameters * problem.width, part = rows_of_part(rows);
  if (part > 1) {
    RT_LAUNCH((sum_parts_kernel<A>), ceil_div(ceil_div(rows, part) * columns, threads), threads, stream, partial, rows,
              part, columns);
  }
  RT_LAUNCH((sum_kernel<A>), ceil_div(columns, threads), threads, stream, partial, rows, part, problem.width,
            gradients);
}

bool empty(const Problem& problem) { return !problem.length || !problem.batch || !problem.width; }

}  // namespace

int64_t cuda_partial_rows(const Problem& problem) {
  return empty(problem) ? 0 : make_task(problem).groups * problem.batch;
}

cudaError_t cuda_forward(const Problem& problem, void* h, void* c, cudaStream_t stream) {
  if (empty(problem)) return cudaSuccess;
  dispatch(problem, Forward{make_task(problem), h, c, stream});
  return cudaGetLastError();
}

cudaError_t cuda_backward(const Problem& problem, const Strided& dh, const void* c, void* dx12, void* partial,
                          const ParameterGradient (&gradients)[kParameters], cudaStream_t stream) {
  if (!problem.width) return cudaSuccess;
  if (!empty(problem)) {
    dispatch(problem, Backward{make_task(problem), dh, c, dx12, partial, stream});
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  const int64_t rows = cuda_partial_rows(problem);
  const Gradients out = {{gradients[0], gradients[1], gradients[2], gradients[3]}};
  if (problem.dtype == DType::float64) {
    sum(problem, static_cast<double*>(partial), rows, out, stream);
  } else {
    sum(problem, static_cast<float*>(partial), rows, out, stream);
  }
  return cudaGetLastError();
}

}  // namespace rt
