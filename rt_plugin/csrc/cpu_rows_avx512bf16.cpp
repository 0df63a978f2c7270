#include "cpu_rows.h"
#include "lanes_avx512.h"

namespace rt {

RowKernels row_kernels_avx512bf16(Gate gate) {
  switch (gate) {
    case Gate::sigmoid: return kernels_of<Lanes512<false>, BFloat16, Gate::sigmoid>();
    case Gate::silu: return kernels_of<Lanes512<false>, BFloat16, Gate::silu>();
    default: return kernels_of<Lanes512<false>, BFloat16, Gate::gelu>();
  }
}

}  // namespace rt
