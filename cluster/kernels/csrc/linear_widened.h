// Linear tiles with float32 products: of bfloat16 weights and activations that are widened, so that
// nothing is lost, and of float32 ones.
//
// Included only by files that have chosen their lanes.
#pragma once

#include "linear_tile.h"

namespace linear {
namespace {

template <int rows, int width>
inline void add_products(Lanes (&sum)[rows][width], const Lanes (&weights)[width], const float* x) {
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    const Lanes input = fill(x[r]);
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v) add_product(sum[r][v], weights[v], input);
  }
}

struct WideChain {
  using Value = float;  // of a pair first the even inputs of all rows, then the odd ones
  static constexpr int kValues = 2;

  static inline void put(Value* out, std::int64_t count, Mask rows, Bits pair) {
    store(out, lower_bf16(pair), rows);
    store(out + count, upper_bf16(pair), rows);
  }

  // Even inputs, then odd ones, of weights that are read twice: registers are for the sums.
  template <int rows, int width>
  static inline void step(Lanes (&sum)[rows][width], const bf16* weight, const Value* x) {
    Lanes weights[width];
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v) weights[v] = lower_bf16(load_bits(weight + 32 * v));
    add_products<rows, width>(sum, weights, x);
    forget_memory();
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v) weights[v] = upper_bf16(load_bits(weight + 32 * v));
    add_products<rows, width>(sum, weights, x + rows);
  }
};

// The 32 bits of a pair of bfloat16 inputs are one float32 input here: a weight [N, K] is packed,
// and read back, as if it were bfloat16 [N, 2 K].
struct FloatChain {
  using Value = float;
  static constexpr int kValues = 1;

  static inline void put(Value* out, std::int64_t, Mask rows, Bits inputs) {
    store(out, as_lanes(inputs), rows);
  }

  template <int rows, int width>
  static inline void step(Lanes (&sum)[rows][width], const bf16* weight, const Value* x) {
    Lanes weights[width];
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v) weights[v] = as_lanes(load_bits(weight + 32 * v));
    add_products<rows, width>(sum, weights, x);
  }
};

}  // namespace
}  // namespace linear
