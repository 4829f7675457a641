// Attention with float32 products in AVX-512.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

#include "lanes_avx512.h"

#include "attention_float.h"

namespace deeprequest {

const AttentionKernel ATTENTION_FLOAT_AVX512 = float_kernel<float>();
const AttentionKernel ATTENTION_BF16_AVX512 = float_kernel<bf16_t>();

}  // namespace deeprequest
