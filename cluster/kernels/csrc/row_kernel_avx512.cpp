// Row kernels in AVX-512.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

#include "lanes_avx512.h"

#include "row_kernel_lanes.h"

namespace deeprequest {

const RowKernel<float> AVX512_FLOAT_ROWS = lanes_kernel<float>();
const RowKernel<uint16_t> AVX512_BF16_ROWS = lanes_kernel<uint16_t>();

}  // namespace deeprequest
