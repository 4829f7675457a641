// One token's rotary positions, and its key and value on their way into the cache.
#pragma once

#include <cstdint>

namespace deeprequest {

struct RopeShape {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
};

// Turns the first N + K heads of token[N + 2K, H] in place by cos, sin [H/2] (element i with
// element i + H/2), then copies keys and values to key_slot and value_slot [K, H].
template <class T>
void rope_and_store_token(T* token, const float* cos, const float* sin, T* key_slot,
                          T* value_slot, const RopeShape& shape);

}  // namespace deeprequest
