// Row kernels in AVX2.
#pragma GCC target("avx2,fma")

#include "lanes_avx2.h"

#include "row_kernel_lanes.h"

namespace deeprequest {

const RowKernel<float> AVX2_FLOAT_ROWS = lanes_kernel<float>();
const RowKernel<uint16_t> AVX2_BF16_ROWS = lanes_kernel<uint16_t>();

}  // namespace deeprequest
