// What the CPU and the CUDA binding share: from torch's tensors (stable ABI) to a checked `Problem`, and the outputs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <tuple>

#include "swish_rnn.h"

namespace rt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using ForwardResult = std::tuple<Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    default: STD_TORCH_CHECK(false, "swish_rnn: ", name, " is not of type float32, float64, float16 or bfloat16");
  }
}

inline Gate gate_of(const std::string& name) {
  if (name == "gelu") return Gate::gelu;
  if (name == "sigmoid") return Gate::sigmoid;
  STD_TORCH_CHECK(name == "silu", "swish_rnn: gate is '", name, "', expected gelu, sigmoid or silu");
  return Gate::silu;
}

inline void check_same_device(const Tensor& tensor, const Tensor& x12, const char* name) {
  STD_TORCH_CHECK(tensor.device() == x12.device(), "swish_rnn: ", name, " is not on the device of x12");
}

// The memory of a tensor reaches as far as its sizes and strides say. Storage can be freed or shrunk under a tensor
// (`untyped_storage().resize_()`, which sharded training uses), and reading it would end the process.
inline void check_memory(const Tensor& tensor, const char* name) {
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  int64_t last = tensor.storage_offset();
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) == 0) return;
    last += (tensor.size(d) - 1) * tensor.stride(d);
  }
  const int64_t needed = (last + 1) * int64_t(tensor.element_size());
  STD_TORCH_CHECK(needed <= bytes, "swish_rnn: the memory of ", name, " was freed: ", bytes, " bytes where ", needed,
                  " are needed");
}

// The tensor itself where its channels are neighbours in memory, else a contiguous copy.
inline Tensor with_adjacent_channels(const Tensor& tensor) {
  return tensor.size(2) == 1 || tensor.stride(2) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline Strided strided(const Tensor& tensor) { return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)}; }

// A `Problem` and the tensors that its pointers lead into.
struct Arguments {
  Tensor x12;
  Tensor parameters[kParameters];
  Problem problem;

  Arguments(const Tensor& input, const Tensor& alpha, const Tensor& beta, const Tensor& c_bias, const Tensor& gate_bias,
            int64_t step_size, const std::string& gate, bool reverse)
      : parameters{alpha, beta, c_bias, gate_bias} {
    STD_TORCH_CHECK(input.dim() == 3 && input.size(2) % 2 == 0,
                    "swish_rnn: x12 is not of shape (length, batch, 2 * inner_dim)");
    check_memory(input, "x12");
    STD_TORCH_CHECK(step_size >= 1, "swish_rnn: step_size is ", step_size, ", expected at least 1");
    x12 = with_adjacent_channels(input);
    problem.length = input.size(0);
    problem.batch = input.size(1);
    problem.width = input.size(2) / 2;
    problem.step_size = smaller(step_size, larger(1, problem.length));  // beyond that all are alike
    problem.dtype = dtype_of(input, "x12");
    problem.gate = gate_of(gate);
    problem.reverse = reverse;
    problem.x12 = strided(x12);
    constexpr const char* names[kParameters] = {"alpha", "beta", "c_bias", "gate_bias"};
    for (int q = 0; q < kParameters; ++q) problem.parameters[q] = parameter(q, names[q]);
  }

  Tensor new_tensor(int64_t channels) const {
    return torch::stable::new_empty(x12, {problem.length, problem.batch, channels});
  }

  // dh and c of the shape of h, on the device and in the type of x12.
  void check_like_output(const Tensor& tensor, const char* name) const {
    check_same_device(tensor, x12, name);
    STD_TORCH_CHECK(dtype_of(tensor, name) == problem.dtype, "swish_rnn: ", name, " is not of the type of x12");
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == problem.length && tensor.size(1) == problem.batch &&
                        tensor.size(2) == problem.width,
                    "swish_rnn: ", name, " is not of shape (length, batch, inner_dim)");
    check_memory(tensor, name);
  }

 private:
  Parameter parameter(int q, const char* name) {
    Tensor& p = parameters[q];
    check_same_device(p, x12, name);
    STD_TORCH_CHECK(p.dim() == 1 && p.size(0) == problem.width, "swish_rnn: ", name, " is not of shape (inner_dim,)");
    check_memory(p, name);
    p = torch::stable::contiguous(p);
    DType dtype = dtype_of(p, name);
    STD_TORCH_CHECK(dtype == problem.dtype || dtype == DType::float32, "swish_rnn: ", name,
                    " is neither of the type of x12 nor float32");
    return {p.const_data_ptr(), dtype};
  }
};

// Runs `launch(problem, h, c)` on new outputs. Without `save_state`, c is null there and an empty tensor here.
template <typename Launch>
ForwardResult run_forward(const Arguments& arguments, bool save_state, const Launch& launch) {
  Tensor h = arguments.new_tensor(arguments.problem.width);
  Tensor c = save_state ? arguments.new_tensor(arguments.problem.width) : torch::stable::new_empty(arguments.x12, {0});
  launch(arguments.problem, h.mutable_data_ptr(), save_state ? c.mutable_data_ptr() : nullptr);
  return {h, c};
}

// Runs `launch(problem, dh, c, dx12, gradients)` on new outputs; the gradients have the types of their parameters.
template <typename Launch>
BackwardResult run_backward(const Arguments& arguments, const Tensor& dh_argument, const Tensor& c_argument,
                            const Launch& launch) {
  arguments.check_like_output(dh_argument, "dh");
  arguments.check_like_output(c_argument, "c");
  Tensor dh = with_adjacent_channels(dh_argument);
  Tensor c = torch::stable::contiguous(c_argument);
  Tensor dx12 = arguments.new_tensor(2 * arguments.problem.width);
  auto like = [&](int q) { return torch::stable::new_empty(arguments.parameters[q], {arguments.problem.width}); };
  Tensor gradients[kParameters] = {like(0), like(1), like(2), like(3)};
  ParameterGradient out[kParameters];
  for (int q = 0; q < kParameters; ++q) {
    out[q] = {gradients[q].mutable_data_ptr(), arguments.problem.parameters[q].dtype};
  }
  launch(arguments.problem, strided(dh), c.const_data_ptr(), dx12.mutable_data_ptr(), out);
  return {dx12, gradients[0], gradients[1], gradients[2], gradients[3]};
}

}  // namespace rt
