// SiLU times gate of one row.
#pragma once

#include <cstdint>

#include "lanes_math.h"

namespace deeprequest {
namespace {

// x / (1 + e^-x). Beyond 87 the exponential leaves float32: there silu is x or nearly 0.
inline Lanes silu(Lanes x) {
  const Lanes power = minimum(fill(126.0f), x * fill(-1.442695041f));
  return x / (fill(1.0f) + exp2_of(power));
}

template <class T>
void silu_and_mul_row(const T* gate, const T* up, T* out, int64_t width) {
  for (int64_t at = 0; at < width; at += 16) {
    const Mask lanes = first_lanes(width - at);
    const Lanes opened = rounded_to<T>(silu(load(gate + at, lanes)));
    store(out + at, opened * load(up + at, lanes), lanes);
  }
}

}  // namespace
}  // namespace deeprequest
