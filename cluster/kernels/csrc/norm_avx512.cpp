// RMSNorm rows in AVX-512: the sum of squares in float32, one rounding at the end.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

#include "norm.h"

#include <cmath>

#include "vector_avx512.h"

namespace deeprequest {
namespace {

// Calls visit(offset, lanes, accumulator number) for every vector of the row.
template <class Visit>
inline void for_each_vector(int64_t width, Visit visit) {
  int64_t at = 0;
  for (; at + 64 <= width; at += 64) {
    visit(at, 0xffff, 0);
    visit(at + 16, 0xffff, 1);
    visit(at + 32, 0xffff, 2);
    visit(at + 48, 0xffff, 3);
  }
  for (; at < width; at += 16) visit(at, first_lanes(width - at), 0);
}

inline float inverse_rms(const __m512 sums[4], int64_t width, float eps) {
  const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  const float mean = _mm512_reduce_add_ps(sum) / static_cast<float>(width);
  return 1.0f / std::sqrt(mean + eps);
}

template <class T>
inline void scale_row(const T* x, const T* weight, T* out, int64_t width, float factor) {
  const __m512 scale = _mm512_set1_ps(factor);
  for_each_vector(width, [&](int64_t at, __mmask16 lanes, int) {
    const __m512 scaled = _mm512_mul_ps(load(x + at, lanes), scale);
    store(out + at, _mm512_mul_ps(scaled, load(weight + at, lanes)), lanes);
  });
}

}  // namespace

template <class T>
void rms_norm_row(const T* x, const T* weight, T* out, int64_t width, float eps) {
  __m512 sums[4] = {};
  for_each_vector(width, [&](int64_t at, __mmask16 lanes, int chain) {
    const __m512 value = load(x + at, lanes);
    sums[chain] = _mm512_fmadd_ps(value, value, sums[chain]);
  });
  scale_row(x, weight, out, width, inverse_rms(sums, width, eps));
}

template <class T>
void add_rms_norm_row(
    const T* x, T* residual, const T* weight, T* out, int64_t width, float eps) {
  __m512 sums[4] = {};
  for_each_vector(width, [&](int64_t at, __mmask16 lanes, int chain) {
    const __m512 sum = _mm512_add_ps(load(x + at, lanes), load(residual + at, lanes));
    const __m512 value = rounded_to<T>(sum);
    store(residual + at, value, lanes);
    sums[chain] = _mm512_fmadd_ps(value, value, sums[chain]);
  });
  scale_row(residual, weight, out, width, inverse_rms(sums, width, eps));
}

template void rms_norm_row<float>(const float*, const float*, float*, int64_t, float);
template void rms_norm_row<bf16_t>(const bf16_t*, const bf16_t*, bf16_t*, int64_t, float);
template void add_rms_norm_row<float>(
    const float*, float*, const float*, float*, int64_t, float);
template void add_rms_norm_row<bf16_t>(
    const bf16_t*, bf16_t*, const bf16_t*, bf16_t*, int64_t, float);

}  // namespace deeprequest
