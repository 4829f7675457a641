// Rotary positions of one token, float32 inside.
#pragma once

#include <cstdint>
#include <cstring>

#include "row_kernel.h"

namespace deeprequest {
namespace {

template <class T>
inline void turn_head(T* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t at = 0; at < half; at += 16) {
    const Mask lanes = first_lanes(half - at);
    const Lanes c = load(cos + at, lanes), s = load(sin + at, lanes);
    const Lanes x = load(head + at, lanes), y = load(head + half + at, lanes);
    store(head + at, multiply_subtract(x, c, y * s), lanes);
    store(head + half + at, multiply_add(y, c, x * s), lanes);
  }
}

template <class T>
void rope_and_store_token(T* token, const float* cos, const float* sin, T* key_slot, T* value_slot,
                          const RopeShape& shape) {
  const int64_t dim = shape.head_dim, turned = shape.num_heads + shape.num_kv_heads;
  for (int64_t head = 0; head < turned; ++head) turn_head(token + head * dim, cos, sin, dim / 2);
  const int64_t width = shape.num_kv_heads * dim;
  std::memcpy(key_slot, token + shape.num_heads * dim, width * sizeof(T));
  std::memcpy(value_slot, token + turned * dim, width * sizeof(T));
}

}  // namespace
}  // namespace deeprequest
