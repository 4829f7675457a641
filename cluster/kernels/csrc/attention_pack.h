// Keys and values of a tile, from the cache's rows into the words that `attention_tile.h` reads.
//
// Included only by files that have chosen their lanes.
#pragma once

#include <algorithm>

#include "attention_ahead.h"

namespace deeprequest {
namespace {

// 16 keys at a time: a vector of one word of 16 keys for every word of the head.
template <class Math>
inline void pack_keys(const typename Math::Element* keys, const int64_t* slots, int64_t slot_stride,
                      int64_t count, int64_t head_dim, float* packed, Ahead& ahead) {
  const int64_t steps = head_dim / Math::PER;
  for (int64_t key = 0; key < count; key += 16) {
    float* panel = packed + key / PANEL_KEYS * PANEL_KEYS * steps + key % PANEL_KEYS;
    for (int64_t step = 0; step < steps; step += 16) {
      const int64_t words = std::min<int64_t>(16, steps - step);
      Bits rows[16];
      for (int i = 0; i < 16; ++i)
        rows[i] = Math::load_words(keys + slots[key + i] * slot_stride + step * Math::PER,
                                   first_lanes(words));
      transpose(rows);
      for (int i = 0; i < 4; ++i) ahead.step();
      for (int64_t word = 0; word < words; ++word)
        store_bits(panel + (step + word) * PANEL_KEYS, rows[word]);
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
      const Mask lanes = first_lanes(head_dim - column);
      store_bits(packed + column,
                 Math::load_key_words(first + column, second + column, lanes));
    }
    ahead.step();
    packed += columns;
  }
}

}  // namespace
}  // namespace deeprequest
