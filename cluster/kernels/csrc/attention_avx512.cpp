// Attention with float32 products, over a float32 cache or a bfloat16 one that is widened.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

#include "attention_run.h"

namespace deeprequest {
namespace {

template <class T>
struct FloatMath {
  using Element = T;
  static constexpr int PER = 1;

  static __m512 dot(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }

  static __m512i load_words(const T* p, __mmask16 lanes) {
    return _mm512_castps_si512(load(p, lanes));
  }

  static __m512i load_key_words(const T* key, const T*, __mmask16 lanes) {
    return load_words(key, lanes);
  }

  // NV * 16 columns of one key; past `columns` there is nothing to load.
  template <int NV>
  static void load_columns(const T* key, const T*, int64_t columns, __m512* words) {
    for (int v = 0; v < NV; ++v) words[v] = load(key + 16 * v, first_lanes(columns - 16 * v));
  }

  template <int NV>
  static void order_columns(int64_t, __m512*) {}

  static void store_weights(float* weights, int64_t key, __m512 low, __m512 high) {
    _mm512_store_ps(weights + key, low);
    _mm512_store_ps(weights + key + 16, high);
  }
};

}  // namespace

const AttentionKernel ATTENTION_FLOAT = {
    "fp32fma", Scratch::words, run_piece<FloatMath<float>>, merge_row<FloatMath<float>>};
const AttentionKernel ATTENTION_BF16_WIDENED = {
    "fp32fma", Scratch::words, run_piece<FloatMath<bf16_t>>, merge_row<FloatMath<bf16_t>>};

}  // namespace deeprequest
