// Attention with the bfloat16 dot product of AVX-512.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

#include "attention_pair.h"

namespace deeprequest {

const AttentionKernel ATTENTION_BF16_DOT = {"bf16dot", Scratch::words, run_piece<PairMath>,
                                            merge_row<PairMath>};

}  // namespace deeprequest
