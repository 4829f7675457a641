// Quantising rows, in any instruction set; see linear_int8.h. The compiler vectorises the loops.

#include "linear_int8.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace linear {
namespace {

constexpr std::int64_t kSerialWork = 1 << 14;  // numbers below which threads cost more

inline float widen(bf16 value) { return std::bit_cast<float>(std::uint32_t{value} << 16); }

#define ANY_ISA __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))

// The largest magnitude; bfloat16 bits without their sign order like the numbers they stand for.
ANY_ISA
float largest(const bf16* row, std::int64_t k) {
  bf16 top = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    top = std::max(top, static_cast<bf16>(row[i] & 0x7fff));
  }
  return widen(top);
}

ANY_ISA
void quantize_row(const bf16* row, std::int64_t k, float inverse, int offset, std::uint8_t* out,
                  std::int32_t* sum) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  std::int32_t total = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    const float shifted = widen(row[i]) * inverse + kRound;
    const auto value = static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(shifted)) - 0x4b400000;
    out[i] = static_cast<std::uint8_t>(value + offset);
    total += value;
  }
  *sum = total;
}

}  // namespace

void quantize_rows(Rows x, std::int64_t rows, int offset, std::uint8_t* out, float* scales,
                   std::int32_t* sums, int threads) {
  const std::int64_t width = int8_width(x.k);
  if (rows * x.k < kSerialWork) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t r = 0; r < rows; ++r) {
    const bf16* row = x.data + r * x.stride;
    const float top = largest(row, x.k);
    std::int32_t sum = 0;
    quantize_row(row, x.k, top > 0 ? 127.0f / top : 0.0f, offset, out + r * width, &sum);
    std::fill(out + r * width + x.k, out + (r + 1) * width, static_cast<std::uint8_t>(offset));
    scales[r] = top / 127.0f;
    if (sums != nullptr) sums[r] = sum;
  }
}

}  // namespace linear
