// Sixteen float32 lanes as two AVX2 registers; the words are explained in lanes_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

using bf16_t = uint16_t;  // the bits of a bfloat16

struct Lanes {
  __m256 low, high;
};

struct Bits {
  __m256i low, high;
};

struct Mask {
  int64_t count;
  explicit operator bool() const { return count > 0; }
};

constexpr int kSumLanes = 5;
constexpr Mask ALL_LANES = {16};

inline Mask first_lanes(int64_t count) { return {count < 0 ? 0 : count > 16 ? 16 : count}; }

inline Lanes fill(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline float first_of(Lanes x) { return _mm256_cvtss_f32(x.low); }
inline Lanes as_lanes(Bits x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
inline Bits as_bits(Lanes x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }

inline Lanes operator+(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes operator-(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes operator*(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes operator/(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

inline __m256 widen(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// A half's rounded bits, in the lower 16 of every word.
inline __m256i narrow_half(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i kept = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
  return _mm256_srli_epi32(kept, 16);
}

inline __m256i narrow(Lanes x) {
  const __m256i packed = _mm256_packus_epi32(narrow_half(x.low), narrow_half(x.high));
  return _mm256_permute4x64_epi64(packed, 0xd8);
}

inline Lanes widen(__m256i halves) {
  return {widen(_mm256_castsi256_si128(halves)), widen(_mm256_extracti128_si256(halves, 1))};
}

inline Lanes lower_bf16(Bits pairs) {
  return as_lanes({_mm256_slli_epi32(pairs.low, 16), _mm256_slli_epi32(pairs.high, 16)});
}
inline Lanes upper_bf16(Bits pairs) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return as_lanes({_mm256_and_si256(pairs.low, upper), _mm256_and_si256(pairs.high, upper)});
}

inline Bits load_bits(const void* p) {
  const auto* halves = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline void store_bits(void* p, Bits x) {
  auto* halves = static_cast<__m256i*>(p);
  _mm256_storeu_si256(halves, x.low);
  _mm256_storeu_si256(halves + 1, x.high);
}

inline Bits load_bytes(const void* p, int64_t count) {
  if (count >= 64) return load_bits(p);
  alignas(32) char some[64] = {};
  std::memcpy(some, p, count);
  return load_bits(some);
}

// The first `count` of 8 words; masked stores take some 20 steps on AMD's CPUs.
inline void store_few(char* p, __m256i x, int64_t count) {
  __m128i left = _mm256_castsi256_si128(x);
  if (count & 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), left);
    left = _mm256_extracti128_si256(x, 1);
    p += 16;
  }
  if (count & 2) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), left);
    left = _mm_srli_si128(left, 8);
    p += 8;
  }
  if (count & 1) _mm_storeu_si32(p, left);
}

inline void store_words(void* p, Bits x, Mask lanes) {
  auto* out = static_cast<char*>(p);
  if (lanes.count == 16) return store_bits(out, x);
  if (lanes.count < 8) return store_few(out, x.low, lanes.count);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x.low);
  store_few(out + 32, x.high, lanes.count - 8);
}

inline Lanes load(const float* p, Mask lanes = ALL_LANES) {
  return as_lanes(load_bytes(p, lanes.count * sizeof(float)));
}
inline Lanes load(const bf16_t* p, Mask lanes = ALL_LANES) {
  if (lanes.count == 16) return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return widen(load_bytes(p, lanes.count * sizeof(bf16_t)).low);
}

// The lanes of a mask as all ones.
inline Bits mask_bits(Mask lanes) {
  alignas(32) static constexpr int32_t ONES[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                   -1, -1, -1, -1, -1, -1, -1, -1};
  return load_bits(ONES + 16 - lanes.count);
}

inline Lanes keep(Lanes x, Mask lanes) {
  const Lanes kept = as_lanes(mask_bits(lanes));
  return {_mm256_and_ps(x.low, kept.low), _mm256_and_ps(x.high, kept.high)};
}

template <class T>
inline Lanes load_or(const T* p, Mask lanes, float other) {
  const Lanes found = load(p, lanes), kept = as_lanes(mask_bits(lanes)), rest = fill(other);
  return {_mm256_blendv_ps(rest.low, found.low, kept.low),
          _mm256_blendv_ps(rest.high, found.high, kept.high)};
}

inline void store(float* p, Lanes x, Mask lanes = ALL_LANES) { store_words(p, as_bits(x), lanes); }
inline void store(bf16_t* p, Lanes x, Mask lanes = ALL_LANES) {
  const __m256i halves = narrow(x);
  if (lanes.count == 16) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
  alignas(32) bf16_t all[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(all), halves);
  std::memcpy(p, all, lanes.count * sizeof(bf16_t));
}

template <class T>
inline Lanes rounded_to(Lanes x) {
  if constexpr (sizeof(T) == sizeof(float)) return x;
  else return widen(narrow(x));
}

inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
// gcc 12 chooses among three forms of the instruction and then moves sums about; this one stays.
inline void add_product(__m256& sum, __m256 a, __m256 b) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}
inline void add_product(Lanes& sum, Lanes a, Lanes b) {
  add_product(sum.low, a.low, b.low);
  add_product(sum.high, a.high, b.high);
}
inline Lanes multiply_subtract(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Lanes minimum(Lanes a, Lanes b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Lanes maximum(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

inline Lanes zero_below(Lanes x, Lanes value, float bound) {
  const Lanes limit = fill(bound);
  return {_mm256_and_ps(x.low, _mm256_cmp_ps(value.low, limit.low, _CMP_NLT_UQ)),
          _mm256_and_ps(x.high, _mm256_cmp_ps(value.high, limit.high, _CMP_NLT_UQ))};
}

inline Lanes nearest(Lanes x) {
  constexpr int MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, MODE), _mm256_round_ps(x.high, MODE)};
}

inline __m256 power_of_two(__m256 whole) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Lanes scale_by_power(Lanes x, Lanes whole) {
  return x * Lanes{power_of_two(whole.low), power_of_two(whole.high)};
}

// Halves are folded onto each other, as in the wider register.
inline Lanes interleaved(__m256 even, __m256 odd) {
  const __m256 inner = _mm256_unpacklo_ps(even, odd), outer = _mm256_unpackhi_ps(even, odd);
  return {_mm256_permute2f128_ps(inner, outer, 0x20), _mm256_permute2f128_ps(inner, outer, 0x31)};
}
inline void interleave(Lanes& even, Lanes& odd) {
  const Lanes first = interleaved(even.low, odd.low);
  odd = interleaved(even.high, odd.high);
  even = first;
}

inline float sum_of(Lanes x) {
  const __m256 eight = _mm256_add_ps(x.high, x.low);
  const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float highest_of(Lanes x) {
  const __m256 eight = _mm256_max_ps(x.high, x.low);
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline uint32_t lane_bits(__m256 low, __m256 high) {
  return static_cast<uint32_t>(_mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8);
}
inline uint32_t equal(Lanes a, Lanes b) {
  return lane_bits(_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ),
                   _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ));
}
inline uint32_t not_at_most(Lanes a, Lanes b) {
  return lane_bits(_mm256_cmp_ps(a.low, b.low, _CMP_NLE_UQ),
                   _mm256_cmp_ps(a.high, b.high, _CMP_NLE_UQ));
}

inline Lanes from_integers(Bits x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Bits subtract_integers(Bits a, Bits b) {
  return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
template <int bits>
inline Bits shift_integers_left(Bits x) {
  return {_mm256_slli_epi32(x.low, bits), _mm256_slli_epi32(x.high, bits)};
}

// 8 x 8 words, rows for columns.
inline void transpose_block(__m256i (&rows)[8]) {
  __m256i pairs[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  __m256i quads[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x31);
  }
}

// Rows top ... top + 7 become lower or upper halves of all columns.
inline void transpose_rows(const Bits* rows, int top, Bits* columns) {
  __m256i left[8], right[8];
  for (int i = 0; i < 8; ++i) {
    left[i] = rows[top + i].low;
    right[i] = rows[top + i].high;
  }
  transpose_block(left);
  for (int i = 0; i < 8; ++i) (top == 0 ? columns[i].low : columns[i].high) = left[i];
  transpose_block(right);
  for (int i = 0; i < 8; ++i) (top == 0 ? columns[8 + i].low : columns[8 + i].high) = right[i];
}

inline void transpose(Bits (&rows)[16], int64_t count = 16) {
  Bits columns[16];
  transpose_rows(rows, 0, columns);
  if (count > 8) {
    transpose_rows(rows, 8, columns);
  } else {
    for (Bits& column : columns) column.high = _mm256_setzero_si256();
  }
  std::memcpy(rows, columns, sizeof(columns));
}

}  // namespace
