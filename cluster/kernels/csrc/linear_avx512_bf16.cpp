// Linear tiles with the bfloat16 dot product of AVX-512 (Zen 4 and later, Cooper Lake and later).

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#include "linear_avx512_tile.h"

namespace linear {
namespace {

struct DotChain {
  using Value = std::uint32_t;  // two bfloat16
  static constexpr int kValues = 1;

  static inline void put(Value* out, std::int64_t, __mmask16 rows, __m512i pair) {
    _mm512_mask_storeu_epi32(out, rows, pair);
  }

  template <int rows>
  static inline void step(__m512 (&sum)[rows][2], const bf16* weight, const Value* x) {
    const auto low = (__m512bh)_mm512_load_si512(weight);
    const auto high = (__m512bh)_mm512_load_si512(weight + 32);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r]));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], low, pair);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], high, pair);
    }
  }
};

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}

}  // namespace

const Kernel kAvx512Bf16 = kernel<DotChain>("bf16dot", supported);

}  // namespace linear
