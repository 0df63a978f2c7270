// Registers the operations and their CPU kernels with torch.
#include "binding.h"
#include "cpu.h"

namespace rt {
namespace {

Threads torch_threads() {
  return {int64_t(torch::stable::get_num_threads()),
          [](int64_t count, void (*function)(int64_t, int64_t, void*), void* context) {
            torch::stable::parallel_for(0, count, 1,
                                        [&](int64_t first, int64_t last) { function(first, last, context); });
          }};
}

ForwardResult forward(Tensor x12, Tensor alpha, Tensor beta, Tensor c_bias, Tensor gate_bias, int64_t step_size,
                      std::string gate, bool reverse, bool save_state) {
  Arguments arguments(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse);
  return run_forward(arguments, save_state,
                     [](const Problem& problem, void* h, void* c) { cpu_forward(problem, h, c, torch_threads()); });
}

BackwardResult backward(Tensor dh, Tensor x12, Tensor alpha, Tensor beta, Tensor c_bias, Tensor gate_bias, Tensor c,
                        int64_t step_size, std::string gate, bool reverse) {
  Arguments arguments(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse);
  return run_backward(arguments, dh, c,
                      [](const Problem& problem, const Strided& dh, const void* c, void* dx12,
                         const ParameterGradient(&gradients)[kParameters]) {
                        cpu_backward(problem, dh, c, dx12, gradients, torch_threads());
                      });
}

std::string capability() { return cpu_capability(); }

}  // namespace
}  // namespace rt

STABLE_TORCH_LIBRARY(rt_plugin, m) {
  m.def(
      "swish_rnn_forward(Tensor x12, Tensor alpha, Tensor beta, Tensor c_bias, Tensor gate_bias, int step_size, "
      "str gate, bool reverse, bool save_state) -> (Tensor, Tensor)");
  m.def(
      "swish_rnn_backward(Tensor dh, Tensor x12, Tensor alpha, Tensor beta, Tensor c_bias, Tensor gate_bias, Tensor c, "
      "int step_size, str gate, bool reverse) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cpu_capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(rt_plugin, CPU, m) {
  m.impl("swish_rnn_forward", TORCH_BOX(&rt::forward));
  m.impl("swish_rnn_backward", TORCH_BOX(&rt::backward));
}

STABLE_TORCH_LIBRARY_IMPL(rt_plugin, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&rt::capability));
}
