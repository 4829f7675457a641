// Linear tiles of AVX2: float32 products, and uint8 times int8 by products of 16 bits.

#pragma GCC target("avx2,fma")
#include "lanes_avx2.h"

#include "instructions.h"
#include "linear_widened.h"

namespace linear {
namespace {

// A "pair" of the walk is here four 8-bit inputs, as in linear_avx512_vnni.cpp. Bytes are widened to
// 16 bits, even ones apart from odd ones, so that the sums of two products fit; they are exact.
struct Int8Chain {
  using Value = std::int32_t;  // of four inputs first 0 and 2 of all rows, then 1 and 3
  static constexpr int kValues = 2;

  static inline void put(Value* out, std::int64_t count, Mask rows, Bits four) {
    const __m256i bytes = _mm256_set1_epi16(0xff);
    store_words(out, {_mm256_and_si256(four.low, bytes), _mm256_and_si256(four.high, bytes)}, rows);
    store_words(out + count, {_mm256_srli_epi16(four.low, 8), _mm256_srli_epi16(four.high, 8)},
                rows);
  }

  template <int rows, int width>
  static inline void step(Lanes (&sum)[rows][width], const bf16* weight, const Value* x) {
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v) {
      add<rows, width>(sum, v, even_bytes(load_bits(weight + 32 * v)), x);
      forget_memory();
      add<rows, width>(sum, v, odd_bytes(load_bits(weight + 32 * v)), x + rows);
    }
  }

 private:
  static inline Bits odd_bytes(Bits four) {
    return {_mm256_srai_epi16(four.low, 8), _mm256_srai_epi16(four.high, 8)};
  }

  static inline Bits even_bytes(Bits four) {
    return odd_bytes({_mm256_slli_epi16(four.low, 8), _mm256_slli_epi16(four.high, 8)});
  }

  template <int rows, int width>
  static inline void add(Lanes (&sum)[rows][width], int v, Bits weights, const Value* x) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const __m256i input = _mm256_set1_epi32(x[r]);
      const Bits held = as_bits(sum[r][v]);
      sum[r][v] = as_lanes(
          {_mm256_add_epi32(held.low, _mm256_madd_epi16(weights.low, input)),
           _mm256_add_epi32(held.high, _mm256_madd_epi16(weights.high, input))});
    }
  }
};

}  // namespace

const Kernel kAvx2 = kernel<WideChain>("fp32fma", has_avx2);
const Kernel kAvx2Wide = kernel<FloatChain>("fp32", has_avx2, finish_wide);
const Kernel kAvx2Int8 = kernel<Int8Chain>("int16", has_avx2, finish_int8);

}  // namespace linear
