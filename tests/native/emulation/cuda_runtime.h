// Lets rt_plugin/csrc/cuda.cu be compiled by a C++ compiler and run on a CPU, one thread after the other.
//
// Enough for kernels whose threads share nothing: no shared memory, no barriers, no atomics. What it shows are the
// results and the addresses of every thread, under the sanitizers; what it cannot show are speed and the device's own
// arithmetic. Where RT_EMULATION_LOG names a file, the number of threads of every launch goes there.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define __global__
#define __device__
#define __host__

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

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
