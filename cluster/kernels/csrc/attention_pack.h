// Keys and values of a tile, from the cache's rows into the words that `attention_tile.h` reads.
//
// Included only by files that have chosen their target by pragma.
#pragma once

#include <algorithm>

#include "attention_ahead.h"
#include "vector_avx512.h"

namespace deeprequest {
namespace {

// Rows become columns: 16 vectors of 16 words.
inline void transpose(__m512i rows[16]) {
  __m512i pairs[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  __m512i quads[16];
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(quads[i], quads[i + 4], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(quads[i], quads[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(quads[i + 8], quads[i + 12], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(quads[i + 8], quads[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    rows[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    rows[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

// 16 keys at a time: a vector of one word of 16 keys for every word of the head.
template <class Math>
inline void pack_keys(const typename Math::Element* keys, const int64_t* slots, int64_t slot_stride,
                      int64_t count, int64_t head_dim, float* packed, Ahead& ahead) {
  const int64_t steps = head_dim / Math::PER;
  for (int64_t key = 0; key < count; key += 16) {
    float* panel = packed + key / PANEL_KEYS * PANEL_KEYS * steps + key % PANEL_KEYS;
    for (int64_t step = 0; step < steps; step += 16) {
      const int64_t words = std::min<int64_t>(16, steps - step);
      __m512i rows[16];
      for (int i = 0; i < 16; ++i)
        rows[i] = Math::load_words(keys + slots[key + i] * slot_stride + step * Math::PER,
                                   first_lanes(words));
      transpose(rows);
      for (int i = 0; i < 4; ++i) ahead.step();
      for (int64_t word = 0; word < words; ++word)
        _mm512_store_si512(panel + (step + word) * PANEL_KEYS, rows[word]);
    }
  }
}

template <class Math>
inline void pack_values(const typename Math::Element* values, const int64_t* slots,
                        int64_t slot_stride, int64_t count, int64_t head_dim, float* packed,
                        Ahead& ahead) {
  const int64_t columns = (head_dim + 15) / 16 * 16;
  const int64_t end = (count + 31) / 32 * 32;
  for (int64_t key = 0; key < end; key += Math::PER) {
    const typename Math::Element* first = values + slots[key] * slot_stride;
    const typename Math::Element* second = values + slots[key + Math::PER - 1] * slot_stride;
    for (int64_t column = 0; column < columns; column += 16) {
      const __mmask16 lanes = first_lanes(head_dim - column);
      _mm512_store_si512(packed + column,
                         Math::load_key_words(first + column, second + column, lanes));
    }
    ahead.step();
    packed += columns;
  }
}

}  // namespace
}  // namespace deeprequest
