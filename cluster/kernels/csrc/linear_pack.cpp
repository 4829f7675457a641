// Packing weights and reading rows back. Owns nothing but the walk; see linear_pack.h.

#include "linear_pack.h"

#include <algorithm>
#include <cstring>

namespace linear {
namespace {

constexpr std::int64_t kGroup = 16;  // rows packed together: one cache line of every pair

// Lanes 0 ... count - 1 from as many rows, and zeros up to lane `end`; other lanes may be written by
// other threads at the same time.
void pack_lanes(std::uint32_t* out, const bf16* rows, std::int64_t stride, std::int64_t count,
                std::int64_t end, std::int64_t k) {
  const bf16* row[kGroup];
  for (std::int64_t r = 0; r < count; ++r) row[r] = rows + r * stride;
  const std::int64_t whole = k / 2;
  for (std::int64_t p = 0; p < whole; ++p, out += kPanel) {
    for (std::int64_t r = 0; r < count; ++r) std::memcpy(out + r, row[r] + 2 * p, 4);
    for (std::int64_t r = count; r < end; ++r) out[r] = 0;
  }
  if (k % 2 == 0) return;
  for (std::int64_t r = 0; r < end; ++r) out[r] = r < count ? row[r][k - 1] : 0;
}

}  // namespace

void pack(bf16* packed, const bf16* rows, std::int64_t stride, std::int64_t count,
          std::int64_t row, std::int64_t n, std::int64_t k, int threads) {
  // The last rows also fill the half of the last panel that no row reaches.
  const std::int64_t padded = row + count == n ? panels_of(n) * kPanel : row + count;
  const std::int64_t top = row / kGroup, bottom = (padded + kGroup - 1) / kGroup;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t group = top; group < bottom; ++group) {
    const std::int64_t target = std::max(row, group * kGroup);
    const std::int64_t end = std::min(padded, (group + 1) * kGroup) - target;
    const std::int64_t first = std::min(target - row, count);
    const std::int64_t held = std::min(count - first, end);
    bf16* out = packed + target / kPanel * pairs_of(k) * kPairElements + target % kPanel * 2;
    pack_lanes(reinterpret_cast<std::uint32_t*>(out), rows + first * stride, stride, held, end, k);
  }
}

void gather(const bf16* packed, std::int64_t k, const std::int64_t* ids, std::int64_t count,
            bf16* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t t = 0; t < count; ++t) {
    const std::int64_t row = ids[t];
    const bf16* from = packed + row / kPanel * pairs_of(k) * kPairElements + row % kPanel * 2;
    bf16* to = out + t * k;
    for (std::int64_t p = 0; p < k / 2; ++p) std::memcpy(to + 2 * p, from + p * kPairElements, 4);
    if (k % 2 != 0) to[k - 1] = from[k / 2 * kPairElements];
  }
}

}  // namespace linear
