// One row of logits looked over once for the sampler.
#pragma once

#include <cstdint>

namespace deeprequest {

struct RowBest {
  float value;
  int64_t id;
  // no NaN and no +inf in the row, and something above -inf
  bool healthy;
};

// The largest of `count` logits, the first of equals.
template <class T>
RowBest best_of_row(const T* logits, int64_t count);

// log(sum(exp(logits))) of `count` logits in float32.
template <class T>
float logsumexp_row(const T* logits, int64_t count);

}  // namespace deeprequest
