// The arithmetic of one tile: pack its keys and values, score, exponentiate, weigh, merge.
//
// `Math` chooses the products; a packed word is 32 bits: one float, or a pair of bfloat16.
//
//   keys     [panel of 64 keys][H / PER words][64]   transposed: a vector holds one word of 16 keys
//   values   [256 / PER][H]                          a vector holds 16 columns of one key (pair)
//   queries  [row][H / PER]
//
// Rows go through in groups of up to ROWS, so that scores and sums stay in registers. Included only
// by files that have chosen their target by pragma.
#pragma once

#include <cstring>
#include <limits>

#include "attention.h"
#include "attention_pack.h"

namespace deeprequest {
namespace {

constexpr int ROWS = 6;
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

// Scores of R rows against NV * 16 keys of one panel.
template <class Math, int R, int NV>
inline void score_panel(const float* panel, const float* const* queries, int64_t steps,
                        float (*scores)[TILE_KEYS], int64_t first_key) {
  __m512 sums[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sums[r][v] = _mm512_setzero_ps();
  for (int64_t step = 0; step < steps; ++step) {
    __m512 keys[NV];
    for (int v = 0; v < NV; ++v) keys[v] = _mm512_load_ps(panel + step * PANEL_KEYS + 16 * v);
    for (int r = 0; r < R; ++r) {
      const __m512 query = _mm512_set1_ps(queries[r][step]);
      for (int v = 0; v < NV; ++v) sums[r][v] = Math::dot(sums[r][v], query, keys[v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) _mm512_store_ps(scores[r] + first_key + 16 * v, sums[r][v]);
}

// Scores of R rows against the first `count` keys of the tile, rounded up to 16.
template <class Math, int R>
inline void score_rows(const TileView& tile, const float* const* queries, int64_t count,
                       float (*scores)[TILE_KEYS]) {
  for (int64_t first = 0; first < count; first += PANEL_KEYS) {
    const float* panel = tile.keys + first * tile.steps;
    const int64_t left = count - first;
    if (left > 48) {
      score_panel<Math, R, 4>(panel, queries, tile.steps, scores, first);
    } else if (left > 32) {
      score_panel<Math, R, 3>(panel, queries, tile.steps, scores, first);
    } else if (left > 16) {
      score_panel<Math, R, 2>(panel, queries, tile.steps, scores, first);
    } else {
      score_panel<Math, R, 1>(panel, queries, tile.steps, scores, first);
    }
  }
}

// Scores -> weights of one row (0 from key `visible` on, to the end of the words in use); fills the
// row's maximum and sum.
template <class Math>
inline void soften(float* scores, float* weights, int64_t visible, float scale_log2,
                   float* partial) {
  const int64_t whole = visible / 16 * 16;
  const __mmask16 rest = first_lanes(visible - whole);
  __m512 highest = _mm512_set1_ps(NOTHING);
  for (int64_t key = 0; key < whole; key += 16)
    highest = _mm512_max_ps(highest, _mm512_load_ps(scores + key));
  if (rest) highest = _mm512_mask_max_ps(highest, rest, highest, _mm512_load_ps(scores + whole));
  const float top = _mm512_reduce_max_ps(highest) * scale_log2;
  const __m512 scale = _mm512_set1_ps(scale_log2), shift = _mm512_set1_ps(-top);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t key = 0; key < visible; key += 32) {
    const __mmask16 low = first_lanes(visible - key);
    const __mmask16 high = visible - key > 16 ? first_lanes(visible - key - 16) : 0;
    const __m512 a = _mm512_maskz_mov_ps(
        low, exp2_ps(_mm512_fmadd_ps(_mm512_load_ps(scores + key), scale, shift)));
    const __m512 b = _mm512_maskz_mov_ps(
        high, exp2_ps(_mm512_fmadd_ps(_mm512_load_ps(scores + key + 16), scale, shift)));
    sum = _mm512_add_ps(_mm512_add_ps(sum, a), b);
    Math::store_weights(weights, key, a, b);
  }
  partial[0] = top;
  partial[1] = _mm512_reduce_add_ps(sum);
}

// Weighted values of R rows in NV * 16 columns over `words` words of keys.
template <class Math, int R, int NV>
inline void weigh_columns(const float* values, int64_t stride, const float (*weights)[TILE_KEYS],
                          int64_t words, float* const* out) {
  __m512 sums[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sums[r][v] = _mm512_setzero_ps();
  for (int64_t word = 0; word < words; ++word) {
    __m512 row[NV];
    for (int v = 0; v < NV; ++v) row[v] = _mm512_load_ps(values + word * stride + 16 * v);
    for (int r = 0; r < R; ++r) {
      const __m512 weight = _mm512_set1_ps(weights[r][word]);
      for (int v = 0; v < NV; ++v) sums[r][v] = Math::dot(sums[r][v], weight, row[v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) _mm512_store_ps(out[r] + 16 * v, sums[r][v]);
}

template <class Math, int R>
inline void weigh_rows(const TileView& tile, const float (*weights)[TILE_KEYS], int64_t words,
                       float* const* partials) {
  for (int64_t column = 0; column < tile.columns; column += 64) {
    const float* values = tile.values + column;
    float* out[R];
    for (int r = 0; r < R; ++r) out[r] = partials[r] + PARTIAL_VALUES + column;
    switch (std::min<int64_t>(4, (tile.columns - column) / 16)) {
      case 4: weigh_columns<Math, R, 4>(values, tile.columns, weights, words, out); break;
      case 3: weigh_columns<Math, R, 3>(values, tile.columns, weights, words, out); break;
      case 2: weigh_columns<Math, R, 2>(values, tile.columns, weights, words, out); break;
      default: weigh_columns<Math, R, 1>(values, tile.columns, weights, words, out);
    }
  }
}

// The partials of R rows; visible[r] >= 1 keys of the tile, growing with r.
template <class Math, int R>
void attend_rows(const TileView& tile, const float* const* queries, const int64_t* visible,
                 float* const* partials) {
  alignas(64) float scores[R][TILE_KEYS];
  alignas(64) float weights[R][TILE_KEYS];
  const int64_t count = visible[R - 1];
  score_rows<Math, R>(tile, queries, count, scores);
  const int64_t words = (count + 31) / 32 * 32 / Math::PER;
  for (int r = 0; r < R; ++r) {
    soften<Math>(scores[r], weights[r], visible[r], tile.scale_log2, partials[r]);
    const int64_t used = (visible[r] + 31) / 32 * 32 / Math::PER;
    std::memset(weights[r] + used, 0, (words - used) * sizeof(float));
  }
  weigh_rows<Math, R>(tile, weights, words, partials);
}

template <class Math>
using AttendRows = void (*)(const TileView&, const float* const*, const int64_t*, float* const*);

template <class Math>
constexpr AttendRows<Math> ATTEND_ROWS[ROWS + 1] = {
    nullptr,
    attend_rows<Math, 1>, attend_rows<Math, 2>, attend_rows<Math, 3>,
    attend_rows<Math, 4>, attend_rows<Math, 5>, attend_rows<Math, 6>,
};

// total <- total (+) partial, both [maximum, sum, ..., values]; the first is taken as it is.
inline void merge_partial(float* total, const float* partial, int64_t columns, bool first) {
  if (first) {
    std::memcpy(total, partial, (PARTIAL_VALUES + columns) * sizeof(float));
    return;
  }
  const float top = total[0] > partial[0] ? total[0] : partial[0];
  const __m512 powers = exp2_ps(_mm512_setr_ps(total[0] - top, partial[0] - top, 0, 0, 0, 0, 0, 0,
                                               0, 0, 0, 0, 0, 0, 0, 0));
  const __m512 keep = _mm512_permutexvar_ps(_mm512_setzero_si512(), powers);
  const __m512 take = _mm512_permutexvar_ps(_mm512_set1_epi32(1), powers);
  for (int64_t column = 0; column < columns; column += 16) {
    float* at = total + PARTIAL_VALUES + column;
    const __m512 kept = _mm512_mul_ps(_mm512_load_ps(at), keep);
    const __m512 taken = _mm512_load_ps(partial + PARTIAL_VALUES + column);
    _mm512_store_ps(at, _mm512_fmadd_ps(taken, take, kept));
  }
  const __m512 sum = _mm512_mul_ps(_mm512_set1_ps(total[1]), keep);
  total[1] = _mm512_cvtss_f32(_mm512_fmadd_ps(_mm512_set1_ps(partial[1]), take, sum));
  total[0] = top;
}

// total / sum -> out.
template <class Element>
inline void finish_row(const float* total, Element* out, int64_t head_dim) {
  const __m512 inverse = _mm512_set1_ps(1.0f / total[1]);
  for (int64_t column = 0; column < head_dim; column += 16) {
    const __m512 value = _mm512_load_ps(total + PARTIAL_VALUES + column);
    store(out + column, _mm512_mul_ps(value, inverse), first_lanes(head_dim - column));
  }
}

}  // namespace
}  // namespace deeprequest
