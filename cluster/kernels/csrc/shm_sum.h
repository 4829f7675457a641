// Sums over ranks, elementwise, in an order that only the ranks' numbers decide.
//
//   ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))      an odd one out is carried to the next level
//
// bfloat16 is widened, summed in float32 and rounded once (to nearest, ties to even).

#pragma once

#include <cstddef>
#include <cstdint>

namespace shm {

inline constexpr int kMaxRanks = 16;

// out[i] = sum over r of parts[r][i]. `out` may be one of the parts.
void sum_ranks(const float* const* parts, int ranks, float* out, std::size_t count);
void sum_ranks(const std::uint16_t* const* parts, int ranks, std::uint16_t* out, std::size_t count);

}  // namespace shm
