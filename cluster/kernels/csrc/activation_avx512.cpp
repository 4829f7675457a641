// SiLU times gate in AVX-512.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

#include "activation.h"

#include "vector_avx512.h"

namespace deeprequest {
namespace {

// x / (1 + e^-x). Beyond 87 the exponential leaves float32: there silu is x or nearly 0.
inline __m512 silu(__m512 x) {
  const __m512 bound = _mm512_set1_ps(126.0f);
  const __m512 power = _mm512_min_ps(bound, _mm512_mul_ps(x, _mm512_set1_ps(-1.442695041f)));
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp2_ps(power)));
}

}  // namespace

template <class T>
void silu_and_mul_row(const T* gate, const T* up, T* out, int64_t width) {
  for (int64_t at = 0; at < width; at += 16) {
    const __mmask16 lanes = first_lanes(width - at);
    const __m512 opened = rounded_to<T>(silu(load(gate + at, lanes)));
    store(out + at, _mm512_mul_ps(opened, load(up + at, lanes)), lanes);
  }
}

template void silu_and_mul_row<float>(const float*, const float*, float*, int64_t);
template void silu_and_mul_row<bf16_t>(const bf16_t*, const bf16_t*, bf16_t*, int64_t);

}  // namespace deeprequest
