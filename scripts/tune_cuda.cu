// Times the CUDA kernels cut up in many ways, beside what the operation itself chooses and a copy of the same bytes.
//
//     tune_cuda L B d' k rounds
//
// Prints a line of CSV a measurement: pass, channels a thread, positions ahead, threads a block (all 0: the operation),
// registers, median microseconds, microseconds of the copy, whether the bits are those of the operation. The type is
// RT_TYPE (Half unless set), the gate GELU. scripts/tune_cuda.py builds and runs it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda_kernels.h"

#ifndef RT_TYPE
#define RT_TYPE Half
#endif

namespace rt {
namespace {

using T = RT_TYPE;
using A = CalculationType<T>;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "tune_cuda: %s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}

template <typename E>
E* allocate(int64_t count) {
  void* data = nullptr;
  check(cudaMalloc(&data, count * sizeof(E)), "allocating memory");
  return static_cast<E*>(data);
}

// About normally distributed: the sum of four uniform numbers, from a hash of the index.
__global__ void fill_kernel(T* x, int64_t count, uint32_t seed, float scale, float offset) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  uint32_t hash = uint32_t(i) * 2654435761u ^ seed, sum = 0;
  for (int part = 0; part < 4; ++part) {
    hash = (hash ^ (hash >> 15)) * 0x2c1b3c6du;
    hash ^= hash >> 13;
    sum += hash & 0xffffu;
  }
  x[i] = narrow<T>(A((float(sum) / 65536.0f - 2.0f) * 1.73f * scale + offset));
}

T* filled(int64_t count, uint32_t seed, float scale = 1.0f, float offset = 0.0f) {
  T* x = allocate<T>(count);
  RT_LAUNCH((fill_kernel), ceil_div(count, 256), 256, cudaStream_t(nullptr), x, count, seed, scale, offset);
  return x;
}

#if defined(__CUDACC__)
constexpr size_t kFlushBytes = size_t(256) << 20;  // more than a second-level cache holds
#else
constexpr size_t kFlushBytes = 1 << 10;
#endif

struct Bench {
  int rounds;
  Task task;
  Strided dh;
  T *h, *c, *dx12, *source, *target;
  A* partial;
  int64_t count;  // elements of h
  char* flush;

  template <typename F>
  float median(F run) const {
    cudaEvent_t start, end;
    check(cudaEventCreate(&start), "creating an event");
    check(cudaEventCreate(&end), "creating an event");
    std::vector<float> times;
    for (int round = 0; round < rounds + 2; ++round) {  // the first two warm up
      check(cudaMemsetAsync(flush, round, kFlushBytes, nullptr), "emptying the cache");
      check(cudaEventRecord(start, nullptr), "recording an event");
      run();
      check(cudaEventRecord(end, nullptr), "recording an event");
      check(cudaEventSynchronize(end), "running a kernel");
      check(cudaGetLastError(), "starting a kernel");
      float milliseconds = 0.0f;
      check(cudaEventElapsedTime(&milliseconds, start, end), "reading a clock");
      if (round >= 2) times.push_back(milliseconds * 1e3f);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  float copy(int64_t tensors) const {  // as many bytes as `tensors` of the size of h, half read and half written
    return median([&] {
      check(cudaMemcpyAsync(target, source, tensors / 2 * count * sizeof(T), cudaMemcpyDeviceToDevice, nullptr),
            "copying");
    });
  }
};

std::vector<char> bytes_of(const T* data, int64_t count) {
  std::vector<char> host(count * sizeof(T));
  check(cudaMemcpy(host.data(), data, host.size(), cudaMemcpyDeviceToHost), "reading results");
  return host;
}

struct Expected {
  std::vector<char> h, dx12;
  float copy_forward, copy_backward;
};

void report(const char* pass, int channels, int ahead, int threads, int registers, float time, float copy, bool same) {
  printf("%s,%d,%d,%d,%d,%.2f,%.2f,%s\n", pass, channels, ahead, threads, registers, time, copy,
         same ? "same" : "differ");
  fflush(stdout);
}

template <typename Kernel>
int registers_of(Kernel kernel) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "reading a kernel's registers");
  return attributes.numRegs;
}

// The operation itself: the shapes that it chooses, the gradients of the parameters included.
Expected run_operation(const Bench& bench) {
  Gradients gradients = {};
  A* sums = allocate<A>(kParameters * bench.task.width);
  const DType dtype = sizeof(A) == 8 ? DType::float64 : DType::float32;
  for (int q = 0; q < kParameters; ++q) gradients.of[q] = {sums + q * bench.task.width, dtype};
  const float forward = bench.median([&] { cuda_forward(bench.task, bench.h, bench.c, nullptr); });
  const float backward = bench.median(
      [&] { cuda_backward(bench.task, bench.dh, bench.c, bench.dx12, bench.partial, gradients.of, nullptr); });
  Expected expected = {bytes_of(bench.h, bench.count), bytes_of(bench.dx12, 2 * bench.count), bench.copy(4),
                       bench.copy(6)};
  report("forward", 0, 0, 0, 0, forward, expected.copy_forward, true);
  report("backward", 0, 0, 0, 0, backward, expected.copy_backward, true);
  return expected;
}

template <int V, int U, int B>
void measure(const Bench& bench, const Expected& expected) {
  if (V * sizeof(T) > 16 || bench.task.width % V) return;
  constexpr int channels = V * sizeof(T) > 16 ? 1 : V;
  const Task& task = bench.task;
  const int64_t blocks = ceil_div(task.groups * task.batch * (task.width / channels), B);
  const auto forward = forward_kernel<T, Gate::gelu, channels, U>;
  const auto backward = backward_kernel<T, Gate::gelu, channels, U>;
  check(cudaMemset(bench.h, 0xff, bench.count * sizeof(T)), "clearing results");
  check(cudaMemset(bench.dx12, 0xff, 2 * bench.count * sizeof(T)), "clearing results");
  float time = bench.median([&] { RT_LAUNCH((forward), blocks, B, cudaStream_t(nullptr), task, bench.h, bench.c); });
  report("forward", channels, U, B, registers_of(forward), time, expected.copy_forward,
         bytes_of(bench.h, bench.count) == expected.h);
  time = bench.median([&] {
    RT_LAUNCH((backward), blocks, B, cudaStream_t(nullptr), task, bench.dh, static_cast<const T*>(bench.c), bench.dx12,
              bench.partial);
  });
  report("backward", channels, U, B, registers_of(backward), time, expected.copy_backward,
         bytes_of(bench.dx12, 2 * bench.count) == expected.dx12);
}

template <int V, int U>
void measure_blocks(const Bench& bench, const Expected& expected) {
  measure<V, U, 32>(bench, expected);
  measure<V, U, 64>(bench, expected);
  measure<V, U, 128>(bench, expected);
}

Bench make_bench(int64_t length, int64_t batch, int64_t width, int64_t step_size, int rounds) {
  const DType dtype = sizeof(T) == 8                     ? DType::float64
                      : sizeof(T) == 4                   ? DType::float32
                      : std::is_same<T, BFloat16>::value ? DType::bfloat16
                                                         : DType::float16;
  const int64_t count = length * batch * width;
  Problem problem = {length, batch,      width, step_size,
                     dtype,  Gate::gelu, false, {filled(2 * count, 1), batch * 2 * width, 2 * width},
                     {}};
  for (int q = 0; q < kParameters; ++q) problem.parameters[q] = {filled(width, 3 + q, 0.3f, q ? 0.0f : 1.0f), dtype};
  Bench bench = {rounds, make_task(problem), {filled(count, 2), batch * width, width}};
  bench.h = allocate<T>(count);
  bench.c = allocate<T>(count);
  bench.dx12 = allocate<T>(2 * count);
  bench.source = filled(3 * count, 9);
  bench.target = allocate<T>(3 * count);
  bench.partial = allocate<A>(cuda_partial_rows(problem) * kParameters * width);
  bench.count = count;
  bench.flush = allocate<char>(kFlushBytes);
  return bench;
}

}  // namespace
}  // namespace rt

int main(int count, char** arguments) {
  if (count != 6) return 2;
  int64_t n[5];
  for (int i = 0; i < 5; ++i) n[i] = atoll(arguments[i + 1]);
  const rt::Bench bench = rt::make_bench(n[0], n[1], n[2], n[3], int(n[4]));
  const rt::Expected expected = rt::run_operation(bench);
  rt::measure_blocks<1, 8>(bench, expected);
  rt::measure_blocks<1, 16>(bench, expected);
  rt::measure_blocks<2, 4>(bench, expected);
  rt::measure_blocks<2, 6>(bench, expected);
  rt::measure_blocks<2, 8>(bench, expected);
  rt::measure_blocks<2, 12>(bench, expected);
  rt::measure_blocks<4, 2>(bench, expected);
  rt::measure_blocks<4, 4>(bench, expected);
  rt::measure_blocks<4, 6>(bench, expected);
  rt::measure_blocks<4, 8>(bench, expected);
  return 0;
}
