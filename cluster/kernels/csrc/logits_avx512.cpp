// Passes over logits in AVX-512.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

#include "logits.h"

#include <cmath>
#include <limits>

#include "vector_avx512.h"

namespace deeprequest {
namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// The first position that holds `value`; -1: none does.
template <class T>
inline int64_t find(const T* logits, int64_t count, float value) {
  const __m512 wanted = _mm512_set1_ps(value);
  for (int64_t at = 0; at < count; at += 16) {
    const __mmask16 lanes = first_lanes(count - at);
    const __mmask16 hit = _mm512_mask_cmp_ps_mask(lanes, load(logits + at, lanes), wanted,
                                                  _CMP_EQ_OQ);
    if (hit) return at + __builtin_ctz(hit);
  }
  return -1;
}

// The largest value, NaN left out; `bad` collects lanes that were NaN or +inf.
template <class T>
inline float highest(const T* logits, int64_t count, __mmask16* bad) {
  __m512 best[4];
  for (__m512& b : best) b = _mm512_set1_ps(NOTHING);
  const __m512 top = _mm512_set1_ps(std::numeric_limits<float>::max());
  __mmask16 poisoned = 0;
  int64_t at = 0;
  for (; at + 64 <= count; at += 64) {
    for (int i = 0; i < 4; ++i) {
      const __m512 x = load(logits + at + 16 * i);
      best[i] = _mm512_max_ps(x, best[i]);
      poisoned |= _mm512_cmp_ps_mask(x, top, _CMP_NLE_UQ);
    }
  }
  for (; at < count; at += 16) {
    const __mmask16 lanes = first_lanes(count - at);
    const __m512 x = load(logits + at, lanes);
    best[0] = _mm512_mask_max_ps(best[0], lanes, x, best[0]);
    poisoned |= _mm512_mask_cmp_ps_mask(lanes, x, top, _CMP_NLE_UQ);
  }
  *bad = poisoned;
  return _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(best[0], best[1]), _mm512_max_ps(best[2], best[3])));
}

}  // namespace

template <class T>
RowBest best_of_row(const T* logits, int64_t count) {
  __mmask16 bad;
  const float value = highest(logits, count, &bad);
  const int64_t id = find(logits, count, value);
  return {value, id < 0 ? 0 : id, bad == 0 && value > NOTHING};
}

template <class T>
float logsumexp_row(const T* logits, int64_t count) {
  constexpr float LOG2_E = 1.442695041f;
  __mmask16 bad;
  const float value = highest(logits, count, &bad);
  if (bad || value == NOTHING) return bad ? std::numeric_limits<float>::quiet_NaN() : NOTHING;
  const __m512 scale = _mm512_set1_ps(LOG2_E), shift = _mm512_set1_ps(-value * LOG2_E);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t at = 0; at < count; at += 16) {
    const __mmask16 lanes = first_lanes(count - at);
    const __m512 power = _mm512_fmadd_ps(load(logits + at, lanes), scale, shift);
    sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(lanes, exp2_ps(power)));
  }
  return value + std::log(_mm512_reduce_add_ps(sum));
}

template RowBest best_of_row<float>(const float*, int64_t);
template RowBest best_of_row<bf16_t>(const bf16_t*, int64_t);
template float logsumexp_row<float>(const float*, int64_t);
template float logsumexp_row<bf16_t>(const bf16_t*, int64_t);

}  // namespace deeprequest
