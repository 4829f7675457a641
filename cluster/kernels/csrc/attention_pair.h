// bfloat16 products, two to a word, summed in float32 by the vector units.
//
// Included only by files that have chosen AVX-512 with bfloat16 products.
#pragma once

#include "lanes_avx512.h"

#include "attention_run.h"

namespace deeprequest {
namespace {

struct PairMath {
  using Element = bf16_t;
  static constexpr int PER = 2;
  static constexpr int CACHED_PER = 2;
  static constexpr int64_t ROWS = VECTOR_ROWS;

  static void attend_rows(int n, const TileView& tile, const float* const* queries,
                          const int64_t* visible, float* const* partials) {
    ATTEND_ROWS<PairMath>[n](tile, queries, visible, partials);
  }

  static __m512 dot(__m512 sum, __m512 a, __m512 b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }

  template <int R>
  static void add_word(__m512 (&sums)[R], const float* const* queries, int64_t step, __m512i keys) {
    for (int r = 0; r < R; ++r)
      sums[r] = dot(sums[r], fill(queries[r][step]), _mm512_castsi512_ps(keys));
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

  // NV * 16 columns of two keys. Whole pairs of vectors are interleaved within 128-bit lanes, which
  // is cheap and leaves the columns out of order until `order_columns`.
  template <int NV>
  static void load_columns(const bf16_t* first, const bf16_t* second, int64_t columns,
                           __m512* words) {
    if (NV % 2 == 0 && columns >= 16 * NV) {
      for (int v = 0; v + 1 < NV; v += 2) {
        const __m512i a = _mm512_loadu_si512(first + 16 * v), b = _mm512_loadu_si512(second + 16 * v);
        words[v] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b));
        words[v + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b));
      }
      return;
    }
    for (int v = 0; v < NV; ++v)
      words[v] = _mm512_castsi512_ps(
          load_key_words(first + 16 * v, second + 16 * v, first_lanes(columns - 16 * v)));
  }

  template <int NV>
  static void order_columns(int64_t columns, __m512* sums) {
    if (NV % 2 != 0 || columns < 16 * NV) return;
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high =
        _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int v = 0; v + 1 < NV; v += 2) {
      const __m512 a = sums[v], b = sums[v + 1];
      sums[v] = _mm512_permutex2var_ps(a, low, b);
      sums[v + 1] = _mm512_permutex2var_ps(a, high, b);
    }
  }

  static void store_weights(float* weights, int64_t key, __m512 low, __m512 high) {
    _mm512_store_si512(weights + key / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
};

}  // namespace
}  // namespace deeprequest
