// The row kernels in the words of lanes. Included after one of lanes_avx512.h and lanes_avx2.h.
#pragma once

#include "activation_lanes.h"
#include "logits_lanes.h"
#include "norm_lanes.h"
#include "rope_lanes.h"
#include "row_kernel.h"

namespace deeprequest {
namespace {

template <class T>
constexpr RowKernel<T> lanes_kernel() {
  return {rms_norm_row<T>, add_rms_norm_row<T>, silu_and_mul_row<T>,
          rope_and_store_token<T>, best_of_row<T>, logsumexp_row<T>};
}

}  // namespace
}  // namespace deeprequest
