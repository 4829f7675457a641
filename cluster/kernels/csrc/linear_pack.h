// Between a weight [N, K] as checkpoints have it and its packed form (see linear_kernel.h).

#pragma once

#include "linear_kernel.h"

namespace linear {

// Rows `row ...` of W from `rows` rows with `stride` elements between them. Nothing but these rows is
// written, so several threads may write different ones; the last rows of W zero the panel's padding.
void pack(bf16* packed, const bf16* rows, std::int64_t stride, std::int64_t count,
          std::int64_t row, std::int64_t n, std::int64_t k, int threads);

// Row number ids[t] of W to out + t * k.
void gather(const bf16* packed, std::int64_t k, const std::int64_t* ids, std::int64_t count,
            bf16* out, int threads);

}  // namespace linear
