// Attention with float32 products in AVX2.
#pragma GCC target("avx2,fma")

#include "lanes_avx2.h"

#include "attention_float.h"

namespace deeprequest {

const AttentionKernel ATTENTION_FLOAT_AVX2 = float_kernel<float>();
const AttentionKernel ATTENTION_BF16_AVX2 = float_kernel<bf16_t>();

}  // namespace deeprequest
