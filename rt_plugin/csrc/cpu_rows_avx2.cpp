#include "cpu_rows.h"
#include "lanes_avx2.h"

namespace rt {

RowKernels row_kernels_avx2(DType dtype, Gate gate) { return select_kernels<Lanes256, Lanes256>(dtype, gate); }

}  // namespace rt
