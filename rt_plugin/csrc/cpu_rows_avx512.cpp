#include "cpu_rows.h"
#include "lanes_avx512.h"

namespace rt {

RowKernels row_kernels_avx512(DType dtype, Gate gate) {
  return select_kernels<Lanes512<true>, Lanes512<false>>(dtype, gate);
}

}  // namespace rt
