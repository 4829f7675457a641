// Rows of numbers as 8-bit integers and one scale a row.

#pragma once

#include "linear_kernel.h"

namespace linear {

// Inputs of a quantised row, padded to whole groups of four.
inline std::int64_t int8_width(std::int64_t k) { return (k + 3) / 4 * 4; }

// Row r of `x` as integers round(x / scale) + offset in [-127, 127] + offset, scale = max |x| / 127,
// to out + r * int8_width(k); padding is `offset`. `sums` (or null) gets the sums of the integers
// without the offset.
void quantize_rows(Rows x, std::int64_t rows, int offset, std::uint8_t* out, float* scales,
                   std::int32_t* sums, int threads);

}  // namespace linear
