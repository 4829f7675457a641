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
  static constexpr int CACHED_PER = sizeof(float) / sizeof(T);
  static constexpr int64_t ROWS = VECTOR_ROWS;

  static void attend_rows(int n, const TileView& tile, const float* const* queries,
                          const int64_t* visible, float* const* partials) {
    ATTEND_ROWS<FloatMath>[n](tile, queries, visible, partials);
  }

  static Lanes dot(Lanes sum, Lanes a, Lanes b) {
    add_product(sum, a, b);
    return sum;
  }

  // A word of 16 keys as it lies in the cache: one element, or two.
  template <int R>
  static void add_word(Lanes (&sums)[R], const float* const* queries, int64_t step, Bits keys) {
    if constexpr (CACHED_PER == 1) {
      add_element<R>(sums, queries, step, as_lanes(keys));
    } else {
      add_element<R>(sums, queries, 2 * step, lower_bf16(keys));
      add_element<R>(sums, queries, 2 * step + 1, upper_bf16(keys));
    }
  }

  template <int R>
  static void add_element(Lanes (&sums)[R], const float* const* queries, int64_t at, Lanes keys) {
    for (int r = 0; r < R; ++r) add_product(sums[r], fill(queries[r][at]), keys);
  }

  static Bits load_words(const T* p, Mask lanes) { return as_bits(load(p, lanes)); }

  static Bits load_key_words(const T* key, const T*, Mask lanes) {
    return load_words(key, lanes);
  }

  // NV * 16 columns of one key; past `columns` there is nothing to load. Pairs of bfloat16 are taken
  // apart, which is cheap and leaves the columns out of order until `order_columns`.
  template <int NV>
  static void load_columns(const T* key, const T*, int64_t columns, Lanes* words) {
    if (by_pairs<NV>(columns)) {
      for (int v = 0; v + 1 < NV; v += 2) {
        const Bits pairs = load_bits(key + 16 * v);
        words[v] = lower_bf16(pairs);
        words[v + 1] = upper_bf16(pairs);
      }
      return;
    }
    for (int v = 0; v < NV; ++v) words[v] = load(key + 16 * v, first_lanes(columns - 16 * v));
  }

  template <int NV>
  static void order_columns(int64_t columns, Lanes* sums) {
    if (!by_pairs<NV>(columns)) return;
    for (int v = 0; v + 1 < NV; v += 2) interleave(sums[v], sums[v + 1]);
  }

  template <int NV>
  static bool by_pairs(int64_t columns) {
    return CACHED_PER == 2 && NV % 2 == 0 && columns >= 16 * NV;
  }

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
