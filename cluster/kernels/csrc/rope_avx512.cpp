// Rotary positions in AVX-512, float32 inside.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

#include "rope.h"

#include <cstring>

#include "vector_avx512.h"

namespace deeprequest {
namespace {

template <class T>
inline void turn_head(T* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t at = 0; at < half; at += 16) {
    const __mmask16 lanes = first_lanes(half - at);
    const __m512 c = load(cos + at, lanes), s = load(sin + at, lanes);
    const __m512 x = load(head + at, lanes), y = load(head + half + at, lanes);
    store(head + at, _mm512_fmsub_ps(x, c, _mm512_mul_ps(y, s)), lanes);
    store(head + half + at, _mm512_fmadd_ps(y, c, _mm512_mul_ps(x, s)), lanes);
  }
}

}  // namespace

template <class T>
void rope_and_store_token(T* token, const float* cos, const float* sin, T* key_slot,
                          T* value_slot, const RopeShape& shape) {
  const int64_t dim = shape.head_dim, turned = shape.num_heads + shape.num_kv_heads;
  for (int64_t head = 0; head < turned; ++head) turn_head(token + head * dim, cos, sin, dim / 2);
  const int64_t width = shape.num_kv_heads * dim;
  std::memcpy(key_slot, token + shape.num_heads * dim, width * sizeof(T));
  std::memcpy(value_slot, token + turned * dim, width * sizeof(T));
}

template void rope_and_store_token<float>(
    float*, const float*, const float*, float*, float*, const RopeShape&);
template void rope_and_store_token<bf16_t>(
    bf16_t*, const float*, const float*, bf16_t*, bf16_t*, const RopeShape&);

}  // namespace deeprequest
