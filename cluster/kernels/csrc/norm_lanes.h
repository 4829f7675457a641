// RMSNorm of one row: the sum of squares in float32, one rounding at the end.
#pragma once

#include <cmath>
#include <cstdint>

namespace deeprequest {
namespace {

// Calls visit(offset, lanes, accumulator number) for every vector of the row.
template <class Visit>
inline void for_each_vector(int64_t width, Visit visit) {
  int64_t at = 0;
  for (; at + 64 <= width; at += 64) {
    visit(at, ALL_LANES, 0);
    visit(at + 16, ALL_LANES, 1);
    visit(at + 32, ALL_LANES, 2);
    visit(at + 48, ALL_LANES, 3);
  }
  for (; at < width; at += 16) visit(at, first_lanes(width - at), 0);
}

inline float inverse_rms(const Lanes sums[4], int64_t width, float eps) {
  const float mean =
      sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(width);
  return 1.0f / std::sqrt(mean + eps);
}

template <class T>
inline void scale_row(const T* x, const T* weight, T* out, int64_t width, float factor) {
  const Lanes scale = fill(factor);
  for_each_vector(width, [&](int64_t at, Mask lanes, int) {
    store(out + at, load(x + at, lanes) * scale * load(weight + at, lanes), lanes);
  });
}

template <class T>
void rms_norm_row(const T* x, const T* weight, T* out, int64_t width, float eps) {
  Lanes sums[4] = {fill(0), fill(0), fill(0), fill(0)};
  for_each_vector(width, [&](int64_t at, Mask lanes, int chain) {
    const Lanes value = load(x + at, lanes);
    sums[chain] = multiply_add(value, value, sums[chain]);
  });
  scale_row(x, weight, out, width, inverse_rms(sums, width, eps));
}

template <class T>
void add_rms_norm_row(const T* x, T* residual, const T* weight, T* out, int64_t width, float eps) {
  Lanes sums[4] = {fill(0), fill(0), fill(0), fill(0)};
  for_each_vector(width, [&](int64_t at, Mask lanes, int chain) {
    const Lanes value = rounded_to<T>(load(x + at, lanes) + load(residual + at, lanes));
    store(residual + at, value, lanes);
    sums[chain] = multiply_add(value, value, sums[chain]);
  });
  scale_row(residual, weight, out, width, inverse_rms(sums, width, eps));
}

}  // namespace
}  // namespace deeprequest
