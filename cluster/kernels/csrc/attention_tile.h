// The arithmetic of one tile: pack its keys and values, score, exponentiate, weigh, merge.
//
// `Math` chooses the products; a packed word is 32 bits: one float, or a pair of bfloat16.
//
//   keys     [panel of 64 keys][H / PER words][64]   transposed: a vector holds one word of 16 keys
//   values   [256 / PER][H]                          a vector holds 16 columns of one key (pair)
//   queries  [row][H / PER]
//
// Rows go through in groups of up to VECTOR_ROWS, so that scores and sums stay in registers. Included
// only by files that have chosen their lanes.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "attention.h"
#include "attention_pack.h"
#include "lanes_math.h"

namespace deeprequest {
namespace {

constexpr int VECTOR_ROWS = std::min(kSumLanes, 6);
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// Layout of a partial: [0] maximum (in powers of two), [1] sum, [16 ...] weighted values.
constexpr int64_t PARTIAL_VALUES = 16;

struct TileView {
  const float* keys;
  const float* values;
  int64_t steps;    // words of a head
  int64_t columns;  // head_dim rounded up to 16
  float scale_log2;
};

// How many Lanes each of R rows can sum into at a time.
constexpr int sums_of_rows(int rows) {
  const int fit = kSumLanes / rows;
  return fit > 4 ? 4 : fit > 1 ? fit : 1;
}

// Scores of R rows against NV * 16 keys of one panel.
template <class Math, int R, int NV>
inline void score_panel(const float* panel, const float* const* queries, int64_t steps,
                        float (*scores)[TILE_KEYS], int64_t first_key) {
  Lanes sums[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sums[r][v] = fill(0);
  for (int64_t step = 0; step < steps; ++step) {
    Lanes keys[NV];
    for (int v = 0; v < NV; ++v) keys[v] = load(panel + step * PANEL_KEYS + 16 * v);
    for (int r = 0; r < R; ++r) {
      const Lanes query = fill(queries[r][step]);
      for (int v = 0; v < NV; ++v) sums[r][v] = Math::dot(sums[r][v], query, keys[v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) store(scores[r] + first_key + 16 * v, sums[r][v]);
}

// As many keys at a time as are wanted, up to NV * 16.
template <class Math, int R, int NV = sums_of_rows(R)>
inline void score_some(const float* panel, const float* const* queries, int64_t steps,
                       float (*scores)[TILE_KEYS], int64_t first_key, int64_t wanted) {
  if constexpr (NV > 1) {
    if (wanted <= 16 * (NV - 1))
      return score_some<Math, R, NV - 1>(panel, queries, steps, scores, first_key, wanted);
  }
  score_panel<Math, R, NV>(panel, queries, steps, scores, first_key);
}

// Scores of R rows against the first `count` keys of the tile, rounded up to 16.
template <class Math, int R>
inline void score_rows(const TileView& tile, const float* const* queries, int64_t count,
                       float (*scores)[TILE_KEYS]) {
  for (int64_t first = 0; first < count; first += PANEL_KEYS) {
    const int64_t end = std::min(count, first + PANEL_KEYS);
    for (int64_t key = first; key < end; key += 16 * sums_of_rows(R))
      score_some<Math, R>(tile.keys + first * tile.steps + key - first, queries, tile.steps, scores,
                          key, end - key);
  }
}

// Scores -> weights of one row (0 from key `visible` on, to the end of the words in use); fills the
// row's maximum and sum.
template <class Math>
inline void soften(float* scores, float* weights, int64_t visible, float scale_log2,
                   float* partial) {
  const int64_t whole = visible / 16 * 16;
  Lanes highest = fill(NOTHING);
  for (int64_t key = 0; key < whole; key += 16) highest = maximum(highest, load(scores + key));
  if (whole < visible)
    highest = maximum(highest, load_or(scores + whole, first_lanes(visible - whole), NOTHING));
  const float top = highest_of(highest) * scale_log2;
  const Lanes scale = fill(scale_log2), shift = fill(-top);
  Lanes sum = fill(0);
  for (int64_t key = 0; key < visible; key += 32) {
    const Mask low = first_lanes(visible - key), high = first_lanes(visible - key - 16);
    const Lanes a = keep(exp2_of(multiply_add(load(scores + key), scale, shift)), low);
    const Lanes b = keep(exp2_of(multiply_add(load(scores + key + 16), scale, shift)), high);
    sum = sum + a + b;
    Math::store_weights(weights, key, a, b);
  }
  partial[0] = top;
  partial[1] = sum_of(sum);
}

// All rows' scores -> weights; returns the words of keys that any row sees, 0 where a row does not.
template <class Math>
inline int64_t soften_rows(int rows, float (*scores)[TILE_KEYS], float (*weights)[TILE_KEYS],
                           const int64_t* visible, float scale_log2, float* const* partials) {
  const int64_t words = (visible[rows - 1] + 31) / 32 * 32 / Math::PER;
  for (int r = 0; r < rows; ++r) {
    soften<Math>(scores[r], weights[r], visible[r], scale_log2, partials[r]);
    const int64_t used = (visible[r] + 31) / 32 * 32 / Math::PER;
    std::memset(weights[r] + used, 0, (words - used) * sizeof(float));
  }
  return words;
}

// Weighted values of R rows in NV * 16 columns over `words` words of keys.
template <class Math, int R, int NV>
inline void weigh_columns(const float* values, int64_t stride, const float (*weights)[TILE_KEYS],
                          int64_t words, float* const* out) {
  Lanes sums[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sums[r][v] = fill(0);
  for (int64_t word = 0; word < words; ++word) {
    Lanes row[NV];
    for (int v = 0; v < NV; ++v) row[v] = load(values + word * stride + 16 * v);
    for (int r = 0; r < R; ++r) {
      const Lanes weight = fill(weights[r][word]);
      for (int v = 0; v < NV; ++v) sums[r][v] = Math::dot(sums[r][v], weight, row[v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) store(out[r] + 16 * v, sums[r][v]);
}

// As many columns at a time as there are, up to NV * 16.
template <class Math, int R, int NV = sums_of_rows(R)>
inline void weigh_some(const TileView& tile, int64_t column, const float (*weights)[TILE_KEYS],
                       int64_t words, float* const* partials) {
  if constexpr (NV > 1) {
    if (tile.columns - column <= 16 * (NV - 1))
      return weigh_some<Math, R, NV - 1>(tile, column, weights, words, partials);
  }
  float* out[R];
  for (int r = 0; r < R; ++r) out[r] = partials[r] + PARTIAL_VALUES + column;
  weigh_columns<Math, R, NV>(tile.values + column, tile.columns, weights, words, out);
}

template <class Math, int R>
inline void weigh_rows(const TileView& tile, const float (*weights)[TILE_KEYS], int64_t words,
                       float* const* partials) {
  for (int64_t column = 0; column < tile.columns; column += 16 * sums_of_rows(R))
    weigh_some<Math, R>(tile, column, weights, words, partials);
}

// The partials of R rows; visible[r] >= 1 keys of the tile, growing with r.
template <class Math, int R>
void attend_rows(const TileView& tile, const float* const* queries, const int64_t* visible,
                 float* const* partials) {
  alignas(64) float scores[R][TILE_KEYS];
  alignas(64) float weights[R][TILE_KEYS];
  score_rows<Math, R>(tile, queries, visible[R - 1], scores);
  const int64_t words = soften_rows<Math>(R, scores, weights, visible, tile.scale_log2, partials);
  weigh_rows<Math, R>(tile, weights, words, partials);
}

template <class Math>
using AttendRows = void (*)(const TileView&, const float* const*, const int64_t*, float* const*);

template <class Math>
constexpr AttendRows<Math> ATTEND_ROWS[] = {
    nullptr,
    attend_rows<Math, 1>, attend_rows<Math, 2>, attend_rows<Math, 3>,
    attend_rows<Math, 4>, attend_rows<Math, 5>, attend_rows<Math, 6>,
};

inline float power_of_two(float x) { return first_of(exp2_of(fill(x))); }

// total <- total (+) partial, both [maximum, sum, ..., values]; the first is taken as it is.
inline void merge_partial(float* total, const float* partial, int64_t columns, bool first) {
  if (first) {
    std::memcpy(total, partial, (PARTIAL_VALUES + columns) * sizeof(float));
    return;
  }
  const float top = total[0] > partial[0] ? total[0] : partial[0];
  const Lanes keep_by = fill(power_of_two(total[0] - top));
  const Lanes take_by = fill(power_of_two(partial[0] - top));
  for (int64_t column = 0; column < columns; column += 16) {
    float* at = total + PARTIAL_VALUES + column;
    const Lanes taken = load(partial + PARTIAL_VALUES + column);
    store(at, multiply_add(taken, take_by, load(at) * keep_by));
  }
  total[1] = first_of(multiply_add(fill(partial[1]), take_by, fill(total[1]) * keep_by));
  total[0] = top;
}

// total / sum -> out.
template <class Element>
inline void finish_row(const float* total, Element* out, int64_t head_dim) {
  const Lanes inverse = fill(1.0f / total[1]);
  for (int64_t column = 0; column < head_dim; column += 16) {
    const Lanes value = load(total + PARTIAL_VALUES + column);
    store(out + column, value * inverse, first_lanes(head_dim - column));
  }
}

}  // namespace
}  // namespace deeprequest
