// Runs cases from a file through the kernels, without torch and Python, so that the sanitizers see every access.
//
//     driver cases results threads
//
// A case is a line of whole numbers, "L B d' k dtype gate reverse save", the types of the four parameters, and how many
// elements behind the start of their allocations x12, dh, c and each parameter begin, followed by raw bytes: x12, the
// four parameters, dh. Its result is raw bytes: h, c (where saved), and, where saved, dx12 and the gradients of the
// four parameters. Every tensor has an allocation of its own size, outputs are filled with NaN before they are written.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "swish_rnn.h"
#if defined(RT_DRIVER_CUDA)
#include "cuda.h"
#else
#include "cpu.h"
#endif

namespace {

int thread_count = 1;

struct Case {
  rt::Problem problem;
  rt::DType parameter_dtypes[rt::kParameters];
  bool save;
  size_t offset_x12, offset_dh, offset_c, offset_parameters;
};

size_t size_of(rt::DType dtype) {
  constexpr size_t sizes[] = {4, 8, 2, 2};
  return sizes[static_cast<int>(dtype)];
}

// One tensor; on the heap, so that one byte too far is an error. 0xff bytes are NaN in every type.
struct Buffer {
  std::vector<unsigned char> bytes;
  size_t offset;
  explicit Buffer(size_t size, size_t offset = 0) : bytes(offset + size, 0xff), offset(offset) {}
  void* data() { return bytes.data() + offset; }
  size_t size() const { return bytes.size() - offset; }
  void read(FILE* file) {
    if (size() && fread(data(), 1, size(), file) != size()) abort();
  }
  void write(FILE* file) const {
    if (size()) fwrite(bytes.data() + offset, 1, size(), file);
  }
};

bool read_case(FILE* file, Case& out) {
  long long n[16];
  for (long long& value : n) {
    if (fscanf(file, "%lld", &value) != 1) return false;
  }
  if (fgetc(file) != '\n') abort();
  out.problem = {};
  out.problem.length = n[0];
  out.problem.batch = n[1];
  out.problem.width = n[2];
  out.problem.step_size = n[3];
  out.problem.dtype = static_cast<rt::DType>(n[4]);
  out.problem.gate = static_cast<rt::Gate>(n[5]);
  out.problem.reverse = n[6] != 0;
  out.save = n[7] != 0;
  for (int q = 0; q < rt::kParameters; ++q) out.parameter_dtypes[q] = static_cast<rt::DType>(n[8 + q]);
  out.offset_x12 = n[12];
  out.offset_dh = n[13];
  out.offset_c = n[14];
  out.offset_parameters = n[15];
  return true;
}

#if defined(RT_DRIVER_CUDA)
void forward(const rt::Problem& problem, void* h, void* c) { rt::cuda_forward(problem, h, c, nullptr); }

void backward(const rt::Problem& problem, const rt::Strided& dh, const void* c, void* dx12,
              const rt::ParameterGradient (&gradients)[rt::kParameters]) {
  const size_t size = problem.dtype == rt::DType::float64 ? 8 : 4;
  Buffer partial(rt::cuda_partial_rows(problem) * rt::kParameters * problem.width * size);
  rt::cuda_backward(problem, dh, c, dx12, partial.data(), gradients, nullptr);
}
#else
void parallel_for(int64_t count, void (*function)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  const int64_t share = rt::ceil_div(count, thread_count);
  for (int64_t first = 0; first < count; first += share) {
    threads.emplace_back(function, first, rt::smaller(count, first + share), context);
  }
  for (std::thread& thread : threads) thread.join();
}

rt::Threads driver_threads() { return {thread_count, parallel_for}; }

void forward(const rt::Problem& problem, void* h, void* c) { rt::cpu_forward(problem, h, c, driver_threads()); }

void backward(const rt::Problem& problem, const rt::Strided& dh, const void* c, void* dx12,
              const rt::ParameterGradient (&gradients)[rt::kParameters]) {
  rt::cpu_backward(problem, dh, c, dx12, gradients, driver_threads());
}
#endif

void run_case(Case& item, FILE* in, FILE* out) {
  rt::Problem& problem = item.problem;
  const int64_t rows = problem.length * problem.batch;
  const int64_t width = problem.width;
  const size_t size = size_of(problem.dtype);

  Buffer x12(rows * 2 * width * size, item.offset_x12 * size), dh(rows * width * size, item.offset_dh * size);
  std::vector<Buffer> parameters, gradients;
  for (rt::DType dtype : item.parameter_dtypes) {
    parameters.emplace_back(width * size_of(dtype), item.offset_parameters * size_of(dtype));
    gradients.emplace_back(width * size_of(dtype));
  }
  x12.read(in);
  for (Buffer& parameter : parameters) parameter.read(in);
  dh.read(in);
  problem.x12 = {x12.data(), problem.batch * 2 * width, 2 * width};
  for (int q = 0; q < rt::kParameters; ++q) problem.parameters[q] = {parameters[q].data(), item.parameter_dtypes[q]};

  Buffer h(rows * width * size), c(item.save ? rows * width * size : 0);
  forward(problem, h.data(), item.save ? c.data() : nullptr);
  h.write(out);
  c.write(out);
  if (!item.save) return;

  Buffer saved(c.size(), item.offset_c * size);
  std::copy(c.bytes.begin(), c.bytes.end(), saved.bytes.begin() + saved.offset);
  Buffer dx12(rows * 2 * width * size);
  rt::ParameterGradient to[rt::kParameters];
  for (int q = 0; q < rt::kParameters; ++q) to[q] = {gradients[q].data(), item.parameter_dtypes[q]};
  backward(problem, {dh.data(), problem.batch * width, width}, saved.data(), dx12.data(), to);
  dx12.write(out);
  for (const Buffer& gradient : gradients) gradient.write(out);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 2;
  FILE* in = fopen(arguments[1], "rb");
  FILE* out = fopen(arguments[2], "wb");
  thread_count = atoi(arguments[3]);
  if (!in || !out || thread_count < 1) return 2;
  Case item;
  while (read_case(in, item)) run_case(item, in, out);
  fclose(in);
  return fclose(out);
}
