// Sixteen float32 lanes as one AVX-512 register: the words that the kernels are written in.
//
//   Lanes, Bits     16 float32, 16 times 32 bits
//   Mask            some of the first lanes, see first_lanes; the others load as zeros
//   kSumLanes       how many Lanes a loop can sum into and still have registers for its operands
//
// lanes_avx2.h says the same words with two registers, and every word gives the same bits. Included,
// one of the two, only by files that have chosen their target by pragma; everything is local to the
// file, so that code for one instruction set can never be linked into another's callers.
#pragma once

// gcc 12 takes its own intrinsics' undefined operands for mistakes
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstdint>

namespace {

using bf16_t = uint16_t;  // the bits of a bfloat16
using Lanes = __m512;
using Bits = __m512i;
using Mask = __mmask16;

constexpr int kSumLanes = 24;
constexpr Mask ALL_LANES = 0xffff;

// The first `count` lanes: none below 1, all from 16 on.
inline Mask first_lanes(int64_t count) {
  if (count >= 16) return ALL_LANES;
  return static_cast<Mask>(count > 0 ? (1u << count) - 1 : 0);
}

inline Lanes fill(float x) { return _mm512_set1_ps(x); }
inline float first_of(Lanes x) { return _mm512_cvtss_f32(x); }
inline Lanes as_lanes(Bits x) { return _mm512_castsi512_ps(x); }
inline Bits as_bits(Lanes x) { return _mm512_castps_si512(x); }

inline Lanes widen(__m256i halves) {
  return as_lanes(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Round to nearest even as torch does, NaN kept quiet.
inline __m256i narrow(Lanes x) {
  const Bits bits = as_bits(x);
  const Bits odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const Bits rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const Bits kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

// The lower and the upper bfloat16 of every word.
inline Lanes lower_bf16(Bits pairs) { return as_lanes(_mm512_slli_epi32(pairs, 16)); }
inline Lanes upper_bf16(Bits pairs) {
  return as_lanes(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline Lanes load(const float* p, Mask lanes = ALL_LANES) { return _mm512_maskz_loadu_ps(lanes, p); }
inline Lanes load(const bf16_t* p, Mask lanes = ALL_LANES) {
  return widen(_mm256_maskz_loadu_epi16(lanes, p));
}

// Lanes outside of the mask are `other`.
inline Lanes load_or(const float* p, Mask lanes, float other) {
  return _mm512_mask_loadu_ps(fill(other), lanes, p);
}
inline Lanes load_or(const bf16_t* p, Mask lanes, float other) {
  return _mm512_mask_mov_ps(fill(other), lanes, load(p, lanes));
}

inline void store(float* p, Lanes x, Mask lanes = ALL_LANES) { _mm512_mask_storeu_ps(p, lanes, x); }
inline void store(bf16_t* p, Lanes x, Mask lanes = ALL_LANES) {
  _mm256_mask_storeu_epi16(p, lanes, narrow(x));
}

inline Bits load_bits(const void* p) { return _mm512_loadu_si512(p); }
inline void store_bits(void* p, Bits x) { _mm512_storeu_si512(p, x); }

// The first `count` bytes of 64; the others are zeros and not read.
inline Bits load_bytes(const void* p, int64_t count) {
  return count >= 64 ? load_bits(p) : _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, p);
}

inline void store_words(void* p, Bits x, Mask lanes) { _mm512_mask_storeu_epi32(p, lanes, x); }

// What `x` becomes when it is stored as T and loaded again.
template <class T>
inline Lanes rounded_to(Lanes x) {
  if constexpr (sizeof(T) == sizeof(float)) return x;
  else return widen(narrow(x));
}

inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
// sum += a * b, in place.
inline void add_product(Lanes& sum, Lanes a, Lanes b) { sum = _mm512_fmadd_ps(a, b, sum); }
inline Lanes multiply_subtract(Lanes a, Lanes b, Lanes c) { return _mm512_fmsub_ps(a, b, c); }
inline Lanes minimum(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
// `b` where one of them is NaN.
inline Lanes maximum(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }

inline Lanes keep(Lanes x, Mask lanes) { return _mm512_maskz_mov_ps(lanes, x); }
// Zero where bound < value; NaN is kept.
inline Lanes zero_below(Lanes x, Lanes value, float bound) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(value, fill(bound), _CMP_NLT_UQ), x);
}

inline Lanes nearest(Lanes x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^whole for whole numbers from -126 to 127.
inline Lanes scale_by_power(Lanes x, Lanes whole) { return _mm512_scalef_ps(x, whole); }

// even[0] odd[0] even[1] odd[1] ...: the first 16 of them, and the others.
inline void interleave(Lanes& even, Lanes& odd) {
  const Bits low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const Bits high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const Lanes first = _mm512_permutex2var_ps(even, low, odd);
  odd = _mm512_permutex2var_ps(even, high, odd);
  even = first;
}

inline float sum_of(Lanes x) { return _mm512_reduce_add_ps(x); }
inline float highest_of(Lanes x) { return _mm512_reduce_max_ps(x); }

// A bit per lane.
inline uint32_t equal(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline uint32_t not_at_most(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }

// 32-bit integers.
inline Lanes from_integers(Bits x) { return _mm512_cvtepi32_ps(x); }
inline Bits subtract_integers(Bits a, Bits b) { return _mm512_sub_epi32(a, b); }
template <int bits>
inline Bits shift_integers_left(Bits x) {
  return _mm512_slli_epi32(x, bits);
}

// 16 x 16 words, rows for columns; of the rows only the first `count` are not zeros.
inline void transpose(Bits (&rows)[16], int64_t count = 16) {
  static_cast<void>(count);
  Bits pairs[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  Bits quads[16];  // quads[4 i + j]: column j of every quarter, rows 4 i ... 4 i + 3
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Bits top_even = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
    const Bits top_odd = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xdd);
    const Bits low_even = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
    const Bits low_odd = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(top_even, low_even, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(top_odd, low_odd, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(top_even, low_even, 0xdd);
    rows[12 + j] = _mm512_shuffle_i32x4(top_odd, low_odd, 0xdd);
  }
}

}  // namespace
