// One row of the gated activation.
#pragma once

#include <cstdint>

namespace deeprequest {

// out = silu(gate) * up over `width` elements of T; silu is rounded to T before the product.
template <class T>
void silu_and_mul_row(const T* gate, const T* up, T* out, int64_t width);

}  // namespace deeprequest
