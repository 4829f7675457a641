// What the AVX-512 kernels share: the walk over a tile and its rounding.
//
// Included by files that have chosen their instruction set by `#pragma GCC target`; everything is
// in an unnamed namespace, so each of them gets its own copy compiled for its own instructions.

#include <immintrin.h>

// GCC 12 takes the deliberately undefined lanes of its own intrinsics for an oversight.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "linear_kernel.h"

namespace linear {
namespace {

inline __mmask16 first_lanes(std::int64_t count) {
  if (count <= 0) return 0;
  return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// To the nearest bfloat16, ties to even; not-a-number stays one.
inline __m256i narrow(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

inline void finish_lanes(const float* sums, __mmask16 lanes, const bf16* bias, void* out,
                         bool wide) {
  __m512 value = _mm512_load_ps(sums);
  if (bias != nullptr) value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(lanes, bias)));
  if (wide) {
    _mm512_mask_storeu_ps(out, lanes, value);
  } else {
    _mm256_mask_storeu_epi16(out, lanes, narrow(value));
  }
}

void finish(const float* sums, std::int64_t rows, std::int64_t columns, const bf16* bias,
            Output out) {
  const std::int64_t size = out.wide ? sizeof(float) : sizeof(bf16);
  for (std::int64_t r = 0; r < rows; ++r) {
    char* row = static_cast<char*>(out.data) + r * out.stride * size;
    for (std::int64_t c = 0; c < columns; c += 16) {
      finish_lanes(sums + r * kPanel + c, first_lanes(columns - c),
                   bias == nullptr ? nullptr : bias + c, row + c * size, out.wide);
    }
  }
}

// Chain: a type with `Pair`, what it reads of a row, and `add(sums, weights, row)`.
template <class Chain, int rows>
void accumulate_tile(const typename Chain::Pair* x, const bf16* weight, std::int64_t pairs,
                     float* sums, bool fresh) {
  __m512 sum[rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    sum[r][0] = fresh ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * kPanel);
    sum[r][1] = fresh ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * kPanel + 16);
  }
  for (std::int64_t p = 0; p < pairs; ++p) {
    Chain::template step<rows>(sum, weight, x);
    weight += kPairElements;
    x += rows;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    _mm512_store_ps(sums + r * kPanel, sum[r][0]);
    _mm512_store_ps(sums + r * kPanel + 16, sum[r][1]);
  }
}

template <class Chain, int rows = kMaxTileRows>
void accumulate(const void* row_panel, const bf16* weight, std::int64_t pairs, std::int64_t count,
                float* sums, bool fresh) {
  if (count == rows) {
    accumulate_tile<Chain, rows>(static_cast<const typename Chain::Pair*>(row_panel), weight,
                                 pairs, sums, fresh);
  } else if constexpr (rows > 1) {
    accumulate<Chain, rows - 1>(row_panel, weight, pairs, count, sums, fresh);
  }
}

}  // namespace
}  // namespace linear
