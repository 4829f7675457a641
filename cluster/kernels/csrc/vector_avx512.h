// AVX-512 words shared by the kernels: bfloat16 in and out, 2^x, sums over lanes.
//
// Included only by files that have chosen their target by pragma; everything is local to the file,
// so that code for one instruction set can never be linked into another's callers.
#pragma once

// gcc 12 takes its own intrinsics' undefined operands for mistakes
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstdint>

namespace {

using bf16_t = uint16_t;

// The first `count` lanes: none below 1, all from 16 on.
inline __mmask16 first_lanes(int64_t count) {
  if (count >= 16) return 0xffff;
  return static_cast<__mmask16>(count > 0 ? (1u << count) - 1 : 0);
}

inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Round to nearest even as torch does, NaN kept quiet.
inline __m256i narrow(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

inline __m512 load(const float* p, __mmask16 lanes = 0xffff) {
  return _mm512_maskz_loadu_ps(lanes, p);
}

inline __m512 load(const bf16_t* p, __mmask16 lanes = 0xffff) {
  return widen(_mm256_maskz_loadu_epi16(lanes, p));
}

inline void store(float* p, __m512 x, __mmask16 lanes = 0xffff) {
  _mm512_mask_storeu_ps(p, lanes, x);
}

inline void store(bf16_t* p, __m512 x, __mmask16 lanes = 0xffff) {
  _mm256_mask_storeu_epi16(p, lanes, narrow(x));
}

// What `x` becomes when it is stored as T and loaded again.
template <class T>
inline __m512 rounded_to(__m512 x);

template <>
inline __m512 rounded_to<float>(__m512 x) {
  return x;
}

template <>
inline __m512 rounded_to<bf16_t>(__m512 x) {
  return widen(narrow(x));
}

// 2^x to two units in the last place; 0 below -126, NaN for NaN and +inf.
inline __m512 exp2_ps(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.535336188e-4f);
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.339887440e-3f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.618437357e-3f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.550332471e-2f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.402264791e-1f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.931472029e-1f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(normal, y, whole);
}

}  // namespace
