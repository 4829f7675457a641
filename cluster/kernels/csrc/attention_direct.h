// A few rows against a tile straight from the cache, nothing packed: decode.
//
// The same products in the same order as `attention_tile.h`, so the same bits. Included only by
// files that have chosen their lanes.
#pragma once

#include "attention_ahead.h"
#include "attention_pack.h"
#include "attention_tile.h"

namespace deeprequest {
namespace {

constexpr int DIRECT_ROWS = 8;

// One kv head of a tile in the cache.
template <class Math>
struct CacheView {
  const typename Math::Element* keys;
  const typename Math::Element* values;
  const int64_t* slots;
  int64_t stride;  // elements between slots
  int64_t count;   // visible keys
  int64_t head_dim;
};

// Adds `words` words of 16 keys, from word `step` of the head on, to the scores of R rows.
template <class Math, int R>
inline void add_words(Lanes (&sums)[R], const float* const* queries, int64_t step,
                      const Bits (&keys)[16], int64_t words, Ahead& ahead) {
  if (words == 16) {
#pragma GCC unroll 16
    for (int word = 0; word < 16; ++word) {
      if (word % 4 == 0) ahead.step();
      Math::template add_word<R>(sums, queries, step + word, keys[word]);
    }
    return;
  }
  for (int word = 0; word < words; ++word) {
    if (word % 4 == 0) ahead.step();
    Math::template add_word<R>(sums, queries, step + word, keys[word]);
  }
}

// Scores of R rows against 16 keys from `key` on.
template <class Math, int R>
inline void score_keys(const CacheView<Math>& view, int64_t key, const float* const* queries,
                       float (*scores)[TILE_KEYS], Ahead& ahead) {
  const int64_t steps = view.head_dim / Math::CACHED_PER;
  Lanes sums[R];
  for (int r = 0; r < R; ++r) sums[r] = fill(0);
  for (int64_t step = 0; step < steps; step += 16) {
    const int64_t words = std::min<int64_t>(16, steps - step);
    Bits rows[16];
    for (int i = 0; i < 16; ++i)
      rows[i] = load_bytes(
          view.keys + view.slots[key + i] * view.stride + step * Math::CACHED_PER, 4 * words);
    transpose(rows);
    add_words<Math, R>(sums, queries, step, rows, words, ahead);
  }
  for (int r = 0; r < R; ++r) store(scores[r] + key, sums[r]);
}

// Weighted values of R rows in NV * 16 columns from `column` on.
template <class Math, int R, int NV>
inline void weigh_cached(const CacheView<Math>& view, int64_t column,
                         const float (*weights)[TILE_KEYS], float* const* partials, Ahead& ahead) {
  Lanes sums[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sums[r][v] = fill(0);
  const int64_t words = (view.count + Math::PER - 1) / Math::PER;
  const int64_t columns = view.head_dim - column;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t* slots = view.slots + word * Math::PER;
    Lanes row[NV];
    Math::template load_columns<NV>(view.values + slots[0] * view.stride + column,
                                    view.values + slots[Math::PER - 1] * view.stride + column,
                                    columns, row);
    ahead.step();
    for (int r = 0; r < R; ++r) {
      const Lanes weight = fill(weights[r][word]);
      for (int v = 0; v < NV; ++v) sums[r][v] = Math::dot(sums[r][v], weight, row[v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    Math::template order_columns<NV>(columns, sums[r]);
    for (int v = 0; v < NV; ++v)
      store(partials[r] + PARTIAL_VALUES + column + 16 * v, sums[r][v]);
  }
}

// As many columns at a time as there are, up to NV * 16.
template <class Math, int R, int NV = sums_of_rows(R)>
inline void weigh_some(const CacheView<Math>& view, int64_t column,
                       const float (*weights)[TILE_KEYS], float* const* partials, Ahead& ahead) {
  if constexpr (NV > 1) {
    if (view.head_dim - column <= 16 * (NV - 1))
      return weigh_some<Math, R, NV - 1>(view, column, weights, partials, ahead);
  }
  weigh_cached<Math, R, NV>(view, column, weights, partials, ahead);
}

template <class Math, int R>
inline void weigh_head(const CacheView<Math>& view, const float (*weights)[TILE_KEYS],
                       float* const* partials, Ahead& ahead) {
  for (int64_t column = 0; column < view.head_dim; column += 16 * sums_of_rows(R))
    weigh_some<Math, R>(view, column, weights, partials, ahead);
}

// The partials of R rows, see `attend_rows`.
template <class Math, int R>
void attend_cached(const CacheView<Math>& view, const float* const* queries,
                   const int64_t* visible, float scale_log2, float* const* partials,
                   Ahead& ahead) {
  alignas(64) float scores[R][TILE_KEYS];
  alignas(64) float weights[R][TILE_KEYS];
  for (int64_t key = 0; key < view.count; key += 16)
    score_keys<Math, R>(view, key, queries, scores, ahead);
  soften_rows<Math>(R, scores, weights, visible, scale_log2, partials);
  weigh_head<Math, R>(view, weights, partials, ahead);
}

template <class Math>
using AttendCached = void (*)(const CacheView<Math>&, const float* const*, const int64_t*, float,
                              float* const*, Ahead&);

template <class Math>
constexpr AttendCached<Math> ATTEND_CACHED[DIRECT_ROWS + 1] = {
    nullptr,
    attend_cached<Math, 1>, attend_cached<Math, 2>, attend_cached<Math, 3>,
    attend_cached<Math, 4>, attend_cached<Math, 5>, attend_cached<Math, 6>,
    attend_cached<Math, 7>, attend_cached<Math, 8>,
};

}  // namespace
}  // namespace deeprequest
