// Linear tiles of float32 weights and activations.
//
// The 32 bits of a pair of bfloat16 inputs are one float32 input here: a weight [N, K] is packed,
// and read back, as if it were bfloat16 [N, 2 K].

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include "linear_avx512_tile.h"

namespace linear {
namespace {

struct FloatChain {
  using Value = float;
  static constexpr int kValues = 1;

  static inline void put(Value* out, std::int64_t, __mmask16 rows, __m512i inputs) {
    _mm512_mask_storeu_ps(out, rows, _mm512_castsi512_ps(inputs));
  }

  template <int rows>
  static inline void step(__m512 (&sum)[rows][2], const bf16* weight, const Value* x) {
    const __m512 low = _mm512_load_ps(weight), high = _mm512_load_ps(weight + 32);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const __m512 input = _mm512_set1_ps(x[r]);
      sum[r][0] = _mm512_fmadd_ps(low, input, sum[r][0]);
      sum[r][1] = _mm512_fmadd_ps(high, input, sum[r][1]);
    }
  }
};

// Sums plus a float32 bias, always to float32.
void finish_wide(const float* sums, std::int64_t rows, std::int64_t columns,
                 const Epilogue& epilogue, Output out) {
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = static_cast<float*>(out.data) + r * out.stride;
    for (std::int64_t c = 0; c < columns; c += 16) {
      const __mmask16 lanes = first_lanes(columns - c);
      __m512 value = _mm512_load_ps(sums + r * kPanel + c);
      if (epilogue.wide_bias != nullptr) {
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, epilogue.wide_bias + c));
      }
      _mm512_mask_storeu_ps(row + c, lanes, value);
    }
  }
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

const Kernel kAvx512Wide = kernel<FloatChain>("fp32", supported, finish_wide);

}  // namespace linear
