// One row of RMSNorm, with or without an addition before it.
#pragma once

#include <cstdint>

namespace deeprequest {

// out = x / rms(x) * weight over `width` elements of T (float or bfloat16 bits).
template <class T>
void rms_norm_row(const T* x, const T* weight, T* out, int64_t width, float eps);

// residual += x, rounded to T; then out = residual / rms(residual) * weight.
template <class T>
void add_rms_norm_row(
    const T* x, T* residual, const T* weight, T* out, int64_t width, float eps);

}  // namespace deeprequest
