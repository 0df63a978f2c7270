#include "cpu_rows.h"

namespace rt {

RowKernels row_kernels_baseline(DType dtype, Gate gate) { return select_kernels(dtype, gate); }

}  // namespace rt
