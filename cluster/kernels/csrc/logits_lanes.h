// Passes over one row of logits.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "lanes_math.h"
#include "row_kernel.h"

namespace deeprequest {
namespace {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// The first position that holds `value`; -1: none does.
template <class T>
inline int64_t find(const T* logits, int64_t count, float value) {
  const Lanes wanted = fill(value);
  for (int64_t at = 0; at < count; at += 16) {
    uint32_t hit = equal(load(logits + at, first_lanes(count - at)), wanted);
    if (count - at < 16) hit &= (1u << (count - at)) - 1;
    if (hit) return at + __builtin_ctz(hit);
  }
  return -1;
}

// The largest value, NaN left out; `bad` tells whether some were NaN or +inf.
template <class T>
inline float highest(const T* logits, int64_t count, bool* bad) {
  Lanes best[4] = {fill(LOWEST), fill(LOWEST), fill(LOWEST), fill(LOWEST)};
  const Lanes top = fill(std::numeric_limits<float>::max());
  uint32_t poisoned = 0;
  const auto take = [&](Lanes x, int chain) {
    best[chain] = maximum(x, best[chain]);
    poisoned |= not_at_most(x, top);
  };
  int64_t at = 0;
  for (; at + 64 <= count; at += 64) {
    for (int chain = 0; chain < 4; ++chain) take(load(logits + at + 16 * chain), chain);
  }
  for (; at < count; at += 16) take(load_or(logits + at, first_lanes(count - at), LOWEST), 0);
  *bad = poisoned != 0;
  return highest_of(maximum(maximum(best[0], best[1]), maximum(best[2], best[3])));
}

template <class T>
RowBest best_of_row(const T* logits, int64_t count) {
  bool bad;
  const float value = highest(logits, count, &bad);
  const int64_t id = find(logits, count, value);
  return {value, id < 0 ? 0 : id, !bad && value > LOWEST};
}

template <class T>
float logsumexp_row(const T* logits, int64_t count) {
  constexpr float LOG2_E = 1.442695041f;
  bool bad;
  const float value = highest(logits, count, &bad);
  if (bad || value == LOWEST) return bad ? std::numeric_limits<float>::quiet_NaN() : LOWEST;
  const Lanes scale = fill(LOG2_E), shift = fill(-value * LOG2_E);
  Lanes sum = fill(0);
  for (int64_t at = 0; at < count; at += 16) {
    const Mask lanes = first_lanes(count - at);
    const Lanes power = multiply_add(load(logits + at, lanes), scale, shift);
    sum = sum + keep(exp2_of(power), lanes);
  }
  return value + std::log(sum_of(sum));
}

}  // namespace
}  // namespace deeprequest
