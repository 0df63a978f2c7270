// The CPU kernels: how the work is cut up, the order of the positions, and the sums over the batch.
//
// Memory is the limit, and runs of several KB at neighbouring addresses are what makes it fast. So a task takes about
// `kRunChannels` channels (a part of a row, or several rows of a narrow tensor) through all positions, and its state
// stays in the first-level cache.
#include "cpu.h"

#include <stdlib.h>

#include <memory>
#include <string>
#include <vector>

namespace rt {
namespace {

constexpr int64_t kRunChannels = 2048;
// Whole vectors for every type, so that no cut changes how a channel is rounded.
constexpr int64_t kChannelMultiple = 64;

// Tasks are `rows` rows by `channels` channels. The cut depends on the number of threads and the results do not:
// nothing is summed across channels, and every row has sums of its own.
struct Partition {
  int64_t rows, channels;
  int64_t row_groups, channel_blocks;

  int64_t tasks() const { return row_groups * channel_blocks; }
};

// As many tasks for one thread as for another: with rows left over, the others would wait.
Partition partition(const Problem& problem, int64_t threads) {
  threads = larger(1, threads);
  int64_t channels = smaller(problem.width, kRunChannels);
  int64_t rows = smaller(problem.batch, larger(1, kRunChannels / channels));
  int64_t row_groups = smaller(problem.batch, ceil_div(ceil_div(problem.batch, rows), threads) * threads);
  rows = ceil_div(problem.batch, row_groups);
  row_groups = ceil_div(problem.batch, rows);
  int64_t blocks = larger(ceil_div(problem.width, channels), ceil_div(threads, row_groups));
  channels = ceil_div(ceil_div(problem.width, blocks), kChannelMultiple) * kChannelMultiple;
  return {rows, channels, row_groups, ceil_div(problem.width, channels)};
}

struct Task {
  int64_t row, rows, channel, channels;
};

Task task(const Problem& problem, const Partition& cut, int64_t index) {
  int64_t row = index / cut.channel_blocks * cut.rows;
  int64_t channel = index % cut.channel_blocks * cut.channels;
  return {row, smaller(cut.rows, problem.batch - row), channel, smaller(cut.channels, problem.width - channel)};
}

template <typename F>
void for_each_task(const Problem& problem, const Threads& threads, const F& function) {
  Partition cut = partition(problem, threads.count);
  auto run = [&](int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) function(task(problem, cut, index));
  };
  using Run = decltype(run);
  threads.parallel_for(
      cut.tasks(), [](int64_t first, int64_t last, void* context) { (*static_cast<Run*>(context))(first, last); },
      &run);
}

// Element (position, row, channel) of a strided tensor, with positions counted in the order of calculation.
template <typename T>
struct View {
  T* first;
  int64_t position_stride, row_stride;

  View(T* data, int64_t position_stride, int64_t row_stride, const Problem& problem)
      : first(problem.reverse ? data + (problem.length - 1) * position_stride : data),
        position_stride(problem.reverse ? -position_stride : position_stride),
        row_stride(row_stride) {}
  View(const Strided& tensor, const Problem& problem)
      : View(static_cast<T*>(tensor.data), tensor.position_stride, tensor.row_stride, problem) {}

  T* at(int64_t position, int64_t row, int64_t channel) const {
    return first + position * position_stride + row * row_stride + channel;
  }
};

template <typename T>
View<T> contiguous_view(void* data, int64_t channels, const Problem& problem) {
  return View<T>(static_cast<T*>(data), problem.batch * channels, channels, problem);
}

template <typename A, typename T>
void widen_all(const void* data, int64_t count, A* out) {
  for (int64_t j = 0; j < count; ++j) out[j] = widen(static_cast<const T*>(data)[j]);
}

// Rows that are used side by side must not lie a multiple of 4 KB apart, or they compete for the same lines of the
// first-level cache: this many elements from one to the next. Few for a narrow block, since each batch row has four.
int64_t padded(int64_t width) {
  return width < 1024 ? ceil_div(width, 64) * 64 + 16 : ceil_div(width, 1024) * 1024 + 80;
}

// The four parameters in the type of calculation, `stride` apart.
template <typename A>
struct WideParameters {
  int64_t stride;
  std::vector<A> values;

  explicit WideParameters(const Problem& problem) : stride(padded(problem.width)), values(kParameters * stride) {
    for (int q = 0; q < kParameters; ++q) {
      const Parameter& p = problem.parameters[q];
      A* to = values.data() + q * stride;
      switch (p.dtype) {
        case DType::float32: widen_all<A, float>(p.data, problem.width, to); break;
        case DType::float64: widen_all<A, double>(p.data, problem.width, to); break;
        case DType::float16: widen_all<A, Half>(p.data, problem.width, to); break;
        case DType::bfloat16: widen_all<A, BFloat16>(p.data, problem.width, to); break;
      }
    }
  }
};

// A value per chain (there are k, or L where L is smaller), row and channel of a task.
template <typename A>
class ChainState {
 public:
  ChainState(const Problem& problem, const Task& task)
      : chains_(smaller(problem.step_size, problem.length)),
        rows_(task.rows),
        channels_(task.channels),
        values_(chains_ * rows_ * channels_, A(0)) {}
  A* at(int64_t position, int64_t row) { return values_.data() + (position % chains_ * rows_ + row) * channels_; }

 private:
  int64_t chains_, rows_, channels_;
  std::vector<A> values_;
};

template <typename T>
void forward_task(const Problem& problem, const RowKernels& kernels, const Task& task,
                  const WideParameters<CalculationType<T>>& parameters, void* h_data, void* c_data) {
  using A = CalculationType<T>;
  View<const T> x12(problem.x12, problem);
  View<T> h = contiguous_view<T>(h_data, problem.width, problem);
  View<T> c = contiguous_view<T>(c_data, problem.width, problem);
  ChainState<A> state(problem, task);

  for (int64_t position = 0; position < problem.length; ++position) {
    for (int64_t r = 0; r < task.rows; ++r) {
      const T* x1 = x12.at(position, task.row + r, task.channel);
      ForwardRow row = {task.channels,
                        x1,
                        x1 + problem.width,
                        x12.position_stride,
                        parameters.values.data() + task.channel,
                        parameters.stride,
                        state.at(position, r),
                        h.at(position, task.row + r, task.channel),
                        c_data ? c.at(position, task.row + r, task.channel) : nullptr,
                        h.position_stride};
      kernels.forward[c_data != nullptr](row);
    }
  }
}

template <typename T>
void backward_task(const Problem& problem, const RowKernels& kernels, const Task& task,
                   const WideParameters<CalculationType<T>>& parameters, const Strided& dh_data, const void* c_data,
                   void* dx12_data, CalculationType<T>* sums) {
  using A = CalculationType<T>;
  View<const T> x12(problem.x12, problem);
  View<const T> dh(dh_data, problem);
  View<const T> c = contiguous_view<const T>(const_cast<void*>(c_data), problem.width, problem);
  View<T> dx12 = contiguous_view<T>(dx12_data, 2 * problem.width, problem);
  ChainState<A> carry(problem, task);
  const int64_t k = problem.step_size;
  const std::vector<T> zeros(task.channels, T{});

  auto run = [&](int64_t position, bool unrolled) {
    for (int64_t r = 0; r < task.rows; ++r) {
      const int64_t b = task.row + r;
      const T* x1 = x12.at(position, b, task.channel);
      T* dx1 = dx12.at(position, b, task.channel);
      BackwardRow row = {task.channels,
                         x1,
                         x1 + problem.width,
                         -k * x12.position_stride,
                         position < k ? zeros.data() : c.at(position - k, b, task.channel),
                         -k * c.position_stride,
                         dh.at(position, b, task.channel),
                         -k * dh.position_stride,
                         parameters.values.data() + task.channel,
                         parameters.stride,
                         dx1,
                         dx1 + problem.width,
                         -k * dx12.position_stride,
                         carry.at(position, r),
                         sums + b * kParameters * padded(problem.width) + task.channel,
                         padded(problem.width)};
      kernels.backward[unrolled](row);
    }
  };
  const int64_t group = kernels.unroll * k;
  int64_t end = problem.length;
  for (; end - group >= k; end -= group) {  // the first k positions have no c[i-k] to load
    for (int64_t position = end - 1; position >= end - k; --position) run(position, true);
  }
  while (end > 0) run(--end, false);
}

// out[channel] = sums[0][channel] + sums[1][channel] + ..., one batch row after the other.
template <typename A, typename T>
void sum_over_batch(const A* sums, const Problem& problem, T* out) {
  std::vector<A> total(problem.width, A(0));
  for (int64_t b = 0; b < problem.batch; ++b) {
    const A* row = sums + b * kParameters * padded(problem.width);
    for (int64_t j = 0; j < problem.width; ++j) total[j] += row[j];
  }
  for (int64_t j = 0; j < problem.width; ++j) out[j] = narrow<T>(CalculationType<T>(total[j]));
}

template <typename A>
void write_gradient(const A* sums, const Problem& problem, const ParameterGradient& out) {
  switch (out.dtype) {
    case DType::float32: return sum_over_batch(sums, problem, static_cast<float*>(out.data));
    case DType::float64: return sum_over_batch(sums, problem, static_cast<double*>(out.data));
    case DType::float16: return sum_over_batch(sums, problem, static_cast<Half*>(out.data));
    case DType::bfloat16: return sum_over_batch(sums, problem, static_cast<BFloat16*>(out.data));
  }
}

template <typename T>
void forward(const Problem& problem, void* h, void* c, const Threads& threads) {
  const RowKernels kernels = row_kernels(problem.dtype, problem.gate);
  const WideParameters<CalculationType<T>> parameters(problem);
  for_each_task(problem, threads, [&](const Task& task) { forward_task<T>(problem, kernels, task, parameters, h, c); });
}

template <typename T>
void backward(const Problem& problem, const Strided& dh, const void* c, void* dx12,
              const ParameterGradient (&gradients)[kParameters], const Threads& threads) {
  using A = CalculationType<T>;
  const RowKernels kernels = row_kernels(problem.dtype, problem.gate);
  const WideParameters<A> parameters(problem);
  std::vector<A> sums(problem.batch * kParameters * padded(problem.width), A(0));  // (B, 4, d' and padding)
  if (problem.length && problem.batch && problem.width) {
    for_each_task(problem, threads, [&](const Task& task) {
      backward_task<T>(problem, kernels, task, parameters, dh, c, dx12, sums.data());
    });
  }
  for (int q = 0; q < kParameters; ++q) write_gradient(sums.data() + q * padded(problem.width), problem, gradients[q]);
}

enum Capability { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };
constexpr const char* kCapabilityNames[] = {"baseline", "avx2", "avx512", "avx512bf16"};

Capability machine_capability() {
#if defined(RT_X86_KERNELS)
  __builtin_cpu_init();
  // F16C came before AVX2 in every machine, and not every compiler can ask for it.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kBaseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return kAvx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
#else
  return kBaseline;
#endif
}

Capability chosen_capability() {
  static const Capability chosen = [] {
    Capability capability = machine_capability();
    const char* wanted = getenv("RT_PLUGIN_CPU");
    for (int i = kBaseline; wanted && i < capability; ++i) {
      if (std::string(wanted) == kCapabilityNames[i]) capability = Capability(i);
    }
    return capability;
  }();
  return chosen;
}

}  // namespace

const char* cpu_capability() { return kCapabilityNames[chosen_capability()]; }

RowKernels row_kernels(DType dtype, Gate gate) {
#if defined(RT_X86_KERNELS)
  if (chosen_capability() == kAvx512Bf16 && dtype == DType::bfloat16) return row_kernels_avx512bf16(gate);
  if (chosen_capability() >= kAvx512) return row_kernels_avx512(dtype, gate);
  if (chosen_capability() == kAvx2) return row_kernels_avx2(dtype, gate);
#endif
  return row_kernels_baseline(dtype, gate);
}

void cpu_forward(const Problem& problem, void* h, void* c, const Threads& threads) {
  if (!problem.length || !problem.batch || !problem.width) return;
  switch (problem.dtype) {
    case DType::float32: return forward<float>(problem, h, c, threads);
    case DType::float64: return forward<double>(problem, h, c, threads);
    case DType::float16: return forward<Half>(problem, h, c, threads);
    case DType::bfloat16: return forward<BFloat16>(problem, h, c, threads);
  }
}

void cpu_backward(const Problem& problem, const Strided& dh, const void* c, void* dx12,
                  const ParameterGradient (&gradients)[kParameters], const Threads& threads) {
  switch (problem.dtype) {
    case DType::float32: return backward<float>(problem, dh, c, dx12, gradients, threads);
    case DType::float64: return backward<double>(problem, dh, c, dx12, gradients, threads);
    case DType::float16: return backward<Half>(problem, dh, c, dx12, gradients, threads);
    case DType::bfloat16: return backward<BFloat16>(problem, dh, c, dx12, gradients, threads);
  }
}

}  // namespace rt
