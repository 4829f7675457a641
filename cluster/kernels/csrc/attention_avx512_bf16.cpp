// Attention with bfloat16 products, two to a word, summed in float32.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

#include "attention_run.h"

namespace deeprequest {
namespace {

struct PairMath {
  using Element = bf16_t;
  static constexpr int PER = 2;

  static __m512 dot(__m512 sum, __m512 a, __m512 b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }

  static __m512i load_words(const bf16_t* p, __mmask16 lanes) {
    return _mm512_maskz_loadu_epi32(lanes, p);
  }

  // One word per column: the first key's element below the second's.
  static __m512i load_key_words(const bf16_t* first, const bf16_t* second, __mmask16 lanes) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, first));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, second));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }

  static void store_weights(float* weights, int64_t key, __m512 low, __m512 high) {
    _mm512_store_si512(weights + key / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
};

}  // namespace

const AttentionKernel ATTENTION_BF16_DOT = {"bf16dot", Scratch::words, run_piece<PairMath>,
                                            merge_row<PairMath>};

}  // namespace deeprequest
