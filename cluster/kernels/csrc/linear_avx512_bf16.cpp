// Linear tiles with the bfloat16 dot product of AVX-512 (Zen 4 and later, Cooper Lake and later).

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#include "lanes_avx512.h"

#include "instructions.h"
#include "linear_tile.h"

namespace linear {
namespace {

struct DotChain {
  using Value = std::uint32_t;  // two bfloat16
  static constexpr int kValues = 1;

  static inline void put(Value* out, std::int64_t, Mask rows, Bits pair) {
    store_words(out, pair, rows);
  }

  template <int rows, int width>
  static inline void step(Lanes (&sum)[rows][width], const bf16* weight, const Value* x) {
    __m512bh weights[width];
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v) weights[v] = (__m512bh)load_bits(weight + 32 * v);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r]));
#pragma GCC unroll 2
      for (int v = 0; v < width; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], weights[v], pair);
    }
  }
};

bool supported() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

}  // namespace

const Kernel kAvx512Bf16 = kernel<DotChain>("bf16dot", supported);

}  // namespace linear
