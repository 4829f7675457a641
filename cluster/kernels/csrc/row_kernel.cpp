// The choice of row_kernel.h.
#include "row_kernel.h"

#include "instructions.h"

namespace deeprequest {

template <>
const RowKernel<float>& row_kernel<float>() {
  static const RowKernel<float>& chosen = has_avx512() ? AVX512_FLOAT_ROWS : AVX2_FLOAT_ROWS;
  return chosen;
}

template <>
const RowKernel<uint16_t>& row_kernel<uint16_t>() {
  static const RowKernel<uint16_t>& chosen = has_avx512() ? AVX512_BF16_ROWS : AVX2_BF16_ROWS;
  return chosen;
}

}  // namespace deeprequest
