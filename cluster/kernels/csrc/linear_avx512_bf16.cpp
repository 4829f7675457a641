// Linear tiles with the bfloat16 dot product of AVX-512 (Zen 4 and later, Cooper Lake and later).

#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#include "linear_avx512_tile.h"

namespace linear {
namespace {

struct DotChain {
  using Pair = std::uint32_t;  // two bfloat16

  template <int rows>
  static inline void step(__m512 (&sum)[rows][2], const bf16* weight, const Pair* x) {
    const auto low = (__m512bh)_mm512_load_si512(weight);
    const auto high = (__m512bh)_mm512_load_si512(weight + kPanel);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r]));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], low, pair);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], high, pair);
    }
  }
};

void pack_rows(Rows x, std::int64_t rows, std::int64_t first, std::int64_t last, void* panel) {
  auto* out = static_cast<std::uint32_t*>(panel);
  const std::int64_t whole = std::int64_t{x.k / 2} < last ? x.k / 2 : last;
  for (std::int64_t r = 0; r < rows; ++r) {
    const bf16* row = x.data + r * x.stride;
    for (std::int64_t p = first; p < whole; ++p) {
      std::memcpy(out + p * rows + r, row + 2 * p, sizeof(std::uint32_t));
    }
    if (whole < last) out[whole * rows + r] = row[x.k - 1];
  }
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}

}  // namespace

const Kernel kAvx512Bf16 = {
    "bf16dot", supported, sizeof(DotChain::Pair), pack_rows, accumulate<DotChain>, finish,
};

}  // namespace linear
