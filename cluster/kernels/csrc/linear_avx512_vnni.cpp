// Linear tiles with the 8-bit dot product of AVX-512 VNNI: uint8 activations times int8 weights.
//
// A "pair" of the walk is here four 8-bit inputs, as wide as two bfloat16; sums are int32 and exact,
// so neighbours cannot change a row's bits whatever the order.

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include "lanes_avx512.h"

#include "instructions.h"
#include "linear_tile.h"

namespace linear {
namespace {

struct VnniChain {
  using Value = std::uint32_t;  // four uint8
  static constexpr int kValues = 1;

  static inline void put(Value* out, std::int64_t, Mask rows, Bits four) {
    store_words(out, four, rows);
  }

  template <int rows, int width>
  static inline void step(Lanes (&sum)[rows][width], const bf16* weight, const Value* x) {
    Bits weights[width];
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v) weights[v] = load_bits(weight + 32 * v);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const Bits four = _mm512_set1_epi32(static_cast<int>(x[r]));
#pragma GCC unroll 2
      for (int v = 0; v < width; ++v)
        sum[r][v] = as_lanes(_mm512_dpbusd_epi32(as_bits(sum[r][v]), four, weights[v]));
    }
  }
};

bool supported() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

}  // namespace

const Kernel kAvx512Vnni = kernel<VnniChain>("vnni", supported, finish_int8);

}  // namespace linear
