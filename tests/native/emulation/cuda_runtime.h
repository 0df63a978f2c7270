// Lets rt_plugin/csrc/cuda.cu be compiled by a C++ compiler and run on a CPU, one thread after the other.
//
// Enough for kernels whose threads share nothing: no shared memory, no barriers, no atomics. What it shows are the
// results and the addresses of every thread, under the sanitizers; what it cannot show are speed and the device's own
// arithmetic. Where RT_EMULATION_LOG names a file, the number of threads of every launch goes there.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

// Memory, copies and clocks, for scripts/tune_cuda.cu: everything has happened when a call returns.

enum cudaMemcpyKind { cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
using cudaEvent_t = std::chrono::steady_clock::time_point*;
struct cudaFuncAttributes {
  int numRegs;
};

inline cudaError_t cudaMalloc(void** data, size_t bytes) {
  *data = malloc(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(data, value, bytes);
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new std::chrono::steady_clock::time_point;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  *event = std::chrono::steady_clock::now();
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(*end - *start).count();
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->numRegs = 0;
  return cudaSuccess;
}

namespace emulation {

struct Index {
  unsigned x;
};

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int64_t blocks, int threads, Arguments... arguments);

}  // namespace emulation

inline emulation::Index blockIdx, blockDim, threadIdx;

template <typename Kernel, typename... Arguments>
void emulation::launch(Kernel kernel, int64_t blocks, int threads, Arguments... arguments) {
  if (const char* name = getenv("RT_EMULATION_LOG")) {
    FILE* log = fopen(name, "a");
    if (!log) abort();
    fprintf(log, "%lld\n", static_cast<long long>(blocks * threads));
    fclose(log);
  }
  blockDim.x = static_cast<unsigned>(threads);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments...);
  }
}

#define RT_EMULATION_NAME(...) __VA_ARGS__
#define RT_LAUNCH(kernel, blocks, threads, stream, ...) \
  ((void)(stream), emulation::launch(RT_EMULATION_NAME kernel, blocks, threads, __VA_ARGS__))
