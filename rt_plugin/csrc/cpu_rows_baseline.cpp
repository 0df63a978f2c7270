#include "cpu_rows.h"
#include "lanes_scalar.h"

namespace rt {

RowKernels row_kernels_baseline(DType dtype, Gate gate) {
  return select_kernels<ScalarLanes<float>, ScalarLanes<float>>(dtype, gate);
}

}  // namespace rt
