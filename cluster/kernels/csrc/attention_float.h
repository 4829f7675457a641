// Float32 products, over a float32 cache or a bfloat16 one that is widened.
//
// Included only by files that have chosen their lanes.
#pragma once

#include "attention_run.h"

namespace deeprequest {
namespace {

template <class T>
struct FloatMath {
  using Element = T;
  static constexpr int PER = 1;
  static constexpr int64_t ROWS = VECTOR_ROWS;

  static void attend_rows(int n, const TileView& tile, const float* const* queries,
                          const int64_t* visible, float* const* partials) {
    ATTEND_ROWS<FloatMath>[n](tile, queries, visible, partials);
  }

  static Lanes dot(Lanes sum, Lanes a, Lanes b) {
    add_product(sum, a, b);
    return sum;
  }

  static Bits load_words(const T* p, Mask lanes) { return as_bits(load(p, lanes)); }

  static Bits load_key_words(const T* key, const T*, Mask lanes) {
    return load_words(key, lanes);
  }

  // NV * 16 columns of one key; past `columns` there is nothing to load.
  template <int NV>
  static void load_columns(const T* key, const T*, int64_t columns, Lanes* words) {
    for (int v = 0; v < NV; ++v) words[v] = load(key + 16 * v, first_lanes(columns - 16 * v));
  }

  template <int NV>
  static void order_columns(int64_t, Lanes*) {}

  static void store_weights(float* weights, int64_t key, Lanes low, Lanes high) {
    store(weights + key, low);
    store(weights + key + 16, high);
  }
};

template <class T>
constexpr AttentionKernel float_kernel() {
  return {"fp32fma", Scratch::words, run_piece<FloatMath<T>>, merge_row<FloatMath<T>>};
}

}  // namespace
}  // namespace deeprequest
