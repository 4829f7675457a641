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

[[maybe_unused]] void finish(const float* sums, std::int64_t rows, std::int64_t columns, const Epilogue& epilogue,
            Output out) {
  const bf16* bias = epilogue.bias;
  const std::int64_t size = out.wide ? sizeof(float) : sizeof(bf16);
  for (std::int64_t r = 0; r < rows; ++r) {
    char* row = static_cast<char*>(out.data) + r * out.stride * size;
    for (std::int64_t c = 0; c < columns; c += 16) {
      finish_lanes(sums + r * kPanel + c, first_lanes(columns - c),
                   bias == nullptr ? nullptr : bias + c, row + c * size, out.wide);
    }
  }
}

// 16 x 16 values of 32 bits, rows for columns.
inline void transpose(__m512i (&rows)[16]) {
  __m512i pairs[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  __m512i quads[16];  // quads[4 i + j]: column j of every quarter, rows 4 i ... 4 i + 3
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i top_even = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
    const __m512i top_odd = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xdd);
    const __m512i low_even = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(top_even, low_even, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(top_odd, low_odd, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(top_even, low_even, 0xdd);
    rows[12 + j] = _mm512_shuffle_i32x4(top_odd, low_odd, 0xdd);
  }
}

// Chain: how the sums of a tile grow by one pair of inputs. It names `Value`, of which a row panel
// has kValues for every row and pair; `put`, which writes one pair of all rows into it; and `step`.
template <class Chain>
void pack_rows(Rows x, std::int64_t rows, std::int64_t first, std::int64_t last, void* panel) {
  for (std::int64_t pair = first; pair < last; pair += 16) {
    const std::int64_t left = x.k - 2 * pair;
    const __mmask32 inside = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    __m512i lanes[16];
    for (std::int64_t r = 0; r < 16; ++r) {
      lanes[r] = r < rows ? _mm512_maskz_loadu_epi16(inside, x.data + r * x.stride + 2 * pair)
                          : _mm512_setzero_si512();
    }
    transpose(lanes);
    auto* out = static_cast<typename Chain::Value*>(panel) + pair * rows * Chain::kValues;
    const std::int64_t count = last - pair < 16 ? last - pair : 16;
    for (std::int64_t p = 0; p < count; ++p, out += rows * Chain::kValues) {
      Chain::put(out, rows, first_lanes(rows), lanes[p]);
    }
  }
}

template <class Chain, int rows>
void accumulate_tile(const typename Chain::Value* x, const bf16* weight, std::int64_t pairs,
                     float* sums, bool fresh, Ahead ahead) {
  __m512 sum[rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    sum[r][0] = fresh ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * kPanel);
    sum[r][1] = fresh ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * kPanel + 16);
  }
  for (std::int64_t p = 0; p < pairs; ++p) {
    _mm_prefetch(ahead.line, _MM_HINT_T0);
    _mm_prefetch(ahead.line + ahead.other, _MM_HINT_T0);
    Chain::template step<rows>(sum, weight, x);
    weight += kPairElements;
    x += rows * Chain::kValues;
    ahead.line += ahead.step;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    _mm512_store_ps(sums + r * kPanel, sum[r][0]);
    _mm512_store_ps(sums + r * kPanel + 16, sum[r][1]);
  }
}

template <class Chain, int rows = kMaxTileRows>
void accumulate(const void* row_panel, const bf16* weight, std::int64_t pairs, std::int64_t count,
                float* sums, bool fresh, Ahead ahead) {
  if (count == rows) {
    accumulate_tile<Chain, rows>(static_cast<const typename Chain::Value*>(row_panel), weight,
                                 pairs, sums, fresh, ahead);
  } else if constexpr (rows > 1) {
    accumulate<Chain, rows - 1>(row_panel, weight, pairs, count, sums, fresh, ahead);
  }
}

template <class Chain>
constexpr Kernel kernel(const char* name, bool (*supported)(),
                        decltype(Kernel::finish) finish_sums = finish) {
  return {name,
          supported,
          Chain::kValues * sizeof(typename Chain::Value),
          pack_rows<Chain>,
          accumulate<Chain>,
          finish_sums};
}

}  // namespace
}  // namespace linear
