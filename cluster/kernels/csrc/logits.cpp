// The sampler's passes over logits as torch sees them.
#include "row_kernel.h"

#include <torch/csrc/utils/pybind.h>

#include <tuple>

#include "bindings.h"
#include "rows.h"

namespace deeprequest {
namespace {

int64_t check_logits(const at::Tensor& logits, int64_t limit) {
  TORCH_CHECK(has_dense_rows(logits), "expected logits [S, V]");
  TORCH_CHECK(limit >= 0 && limit <= logits.size(1), "the limit ", limit, " is no column");
  return limit;
}

// The best of each row's first `limit` logits: float32 values [S], int64 ids [S], bool healthy [S].
std::tuple<at::Tensor, at::Tensor, at::Tensor> row_argmax(const at::Tensor& logits, int64_t limit) {
  check_logits(logits, limit);
  const int64_t rows = logits.size(0), stride = logits.stride(0);
  at::Tensor values = at::empty({rows}, logits.options().dtype(at::kFloat));
  at::Tensor ids = at::empty({rows}, logits.options().dtype(at::kLong));
  at::Tensor healthy = at::empty({rows}, logits.options().dtype(at::kBool));
  with_element(logits, [&](auto element) {
    using T = decltype(element);
    for_each_row(rows, limit, [&](int64_t row) {
      const RowBest best = row_kernel<T>().best(data<T>(logits) + row * stride, limit);
      data<float>(values)[row] = best.value;
      data<int64_t>(ids)[row] = best.id;
      data<bool>(healthy)[row] = best.healthy;
    });
  });
  return {values, ids, healthy};
}

// log(sum(exp)) of each row's first `limit` logits: float32 [S].
at::Tensor row_logsumexp(const at::Tensor& logits, int64_t limit) {
  check_logits(logits, limit);
  const int64_t rows = logits.size(0), stride = logits.stride(0);
  at::Tensor sums = at::empty({rows}, logits.options().dtype(at::kFloat));
  with_element(logits, [&](auto element) {
    using T = decltype(element);
    for_each_row(rows, 4 * limit, [&](int64_t row) {
      data<float>(sums)[row] = row_kernel<T>().logsumexp(data<T>(logits) + row * stride, limit);
    });
  });
  return sums;
}

}  // namespace

}  // namespace deeprequest

void bind_logits(pybind11::module_& module) {
  using Free = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("row_argmax", &deeprequest::row_argmax, Free());
  module.def("row_logsumexp", &deeprequest::row_logsumexp, Free());
}
