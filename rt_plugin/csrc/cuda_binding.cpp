// Registers the CUDA kernels with torch. A library of its own: it needs symbols that only a torch with CUDA has.
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>

#include "binding.h"
#include "cuda.h"

// Declared by torch where USE_CUDA is defined; exported by every torch with CUDA.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace rt {
namespace {

// The device of a tensor made current, and the stream that torch works in there.
class DeviceStream {
 public:
  explicit DeviceStream(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t get() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

void check_launch(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "swish_rnn: the CUDA kernel did not start: ", cudaGetErrorString(error));
}

ForwardResult forward(Tensor x12, Tensor alpha, Tensor beta, Tensor c_bias, Tensor gate_bias, int64_t step_size,
                      std::string gate, bool reverse, bool save_state) {
  DeviceStream stream(x12);
  Arguments arguments(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse);
  return run_forward(arguments, save_state, [&](const Problem& problem, void* h, void* c) {
    check_launch(cuda_forward(problem, h, c, stream.get()));
  });
}

BackwardResult backward(Tensor dh, Tensor x12, Tensor alpha, Tensor beta, Tensor c_bias, Tensor gate_bias, Tensor c,
                        int64_t step_size, std::string gate, bool reverse) {
  DeviceStream stream(x12);
  Arguments arguments(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse);
  const Problem& problem = arguments.problem;
  const ScalarType sum_type = problem.dtype == DType::float64 ? ScalarType::Double : ScalarType::Float;
  Tensor partial =
      torch::stable::new_empty(arguments.x12, {cuda_partial_rows(problem), kParameters, problem.width}, sum_type);
  return run_backward(arguments, dh, c,
                      [&](const Problem& problem, const Strided& dh, const void* c, void* dx12,
                          const ParameterGradient(&gradients)[kParameters]) {
                        check_launch(
                            cuda_backward(problem, dh, c, dx12, partial.mutable_data_ptr(), gradients, stream.get()));
                      });
}

}  // namespace
}  // namespace rt

STABLE_TORCH_LIBRARY_IMPL(rt_plugin, CUDA, m) {
  m.impl("swish_rnn_forward", TORCH_BOX(&rt::forward));
  m.impl("swish_rnn_backward", TORCH_BOX(&rt::backward));
}
