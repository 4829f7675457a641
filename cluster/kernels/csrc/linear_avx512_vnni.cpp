// Linear tiles with the 8-bit dot product of AVX-512 VNNI: uint8 activations times int8 weights.
//
// A "pair" of the walk is here four 8-bit inputs, as wide as two bfloat16; sums are int32 and exact,
// so neighbours cannot change a row's bits whatever the order.

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include "linear_avx512_tile.h"

namespace linear {
namespace {

constexpr int kZeroPoint = 128;  // activations are stored as signed value + 128

struct VnniChain {
  using Value = std::uint32_t;  // four uint8
  static constexpr int kValues = 1;

  static inline void put(Value* out, std::int64_t, __mmask16 rows, __m512i four) {
    _mm512_mask_storeu_epi32(out, rows, four);
  }

  template <int rows>
  static inline void step(__m512 (&sum)[rows][2], const bf16* weight, const Value* x) {
    const __m512i low = _mm512_load_si512(weight);
    const __m512i high = _mm512_load_si512(weight + 32);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const __m512i four = _mm512_set1_epi32(static_cast<int>(x[r]));
      sum[r][0] = _mm512_castsi512_ps(
          _mm512_dpbusd_epi32(_mm512_castps_si512(sum[r][0]), four, low));
      sum[r][1] = _mm512_castsi512_ps(
          _mm512_dpbusd_epi32(_mm512_castps_si512(sum[r][1]), four, high));
    }
  }
};

// (sum - 128 * column_sum) * row_scale * column_scale + bias
void finish_int8(const float* sums, std::int64_t rows, std::int64_t columns,
                 const Epilogue& epilogue, Output out) {
  const std::int64_t size = out.wide ? sizeof(float) : sizeof(bf16);
  for (std::int64_t c = 0; c < columns; c += 16) {
    const __mmask16 lanes = first_lanes(columns - c);
    const __m512i offset = _mm512_mullo_epi32(
        _mm512_set1_epi32(kZeroPoint), _mm512_maskz_loadu_epi32(lanes, epilogue.column_sum + c));
    const __m512 scale = _mm512_maskz_loadu_ps(lanes, epilogue.column_scale + c);
    for (std::int64_t r = 0; r < rows; ++r) {
      const __m512i sum = _mm512_castps_si512(_mm512_load_ps(sums + r * kPanel + c));
      __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset));
      value = _mm512_mul_ps(_mm512_mul_ps(value, _mm512_set1_ps(epilogue.row_scale[r])), scale);
      alignas(64) float scaled[16];
      _mm512_store_ps(scaled, value);
      char* target = static_cast<char*>(out.data) + (r * out.stride + c) * size;
      finish_lanes(scaled, lanes, epilogue.bias == nullptr ? nullptr : epilogue.bias + c, target,
                   out.wide);
    }
  }
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Kernel kAvx512Vnni = kernel<VnniChain>("vnni", supported, finish_int8);

}  // namespace linear
