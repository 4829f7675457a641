// Functions of lanes that no instruction has. Included after one of lanes_avx512.h and lanes_avx2.h.
#pragma once

namespace {

// 2^x to two units in the last place for x below 127; 0 below -126, NaN for NaN and +inf.
inline Lanes exp2_of(Lanes x) {
  const Lanes whole = nearest(x), part = x - whole;
  Lanes y = fill(1.535336188e-4f);
  y = multiply_add(y, part, fill(1.339887440e-3f));
  y = multiply_add(y, part, fill(9.618437357e-3f));
  y = multiply_add(y, part, fill(5.550332471e-2f));
  y = multiply_add(y, part, fill(2.402264791e-1f));
  y = multiply_add(y, part, fill(6.931472029e-1f));
  y = multiply_add(y, part, fill(1.0f));
  return zero_below(scale_by_power(y, whole), x, -126.0f);
}

}  // namespace
