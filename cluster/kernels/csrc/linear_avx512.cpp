// Linear tiles of AVX-512 with float32 products.
//
// Twice as fast as the bfloat16 dot product where that runs at half rate (Sapphire Rapids), and the
// only way on AVX-512 CPUs without it (Skylake, Ice Lake).

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include "lanes_avx512.h"

#include "instructions.h"
#include "linear_widened.h"

namespace linear {

const Kernel kAvx512 = kernel<WideChain>("fp32fma", has_avx512);
const Kernel kAvx512Wide = kernel<FloatChain>("fp32", has_avx512, finish_wide);

}  // namespace linear
