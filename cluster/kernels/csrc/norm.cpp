// RMSNorm as torch sees it: checks shapes, spreads rows over threads.
#include "row_kernel.h"

#include <torch/csrc/utils/pybind.h>

#include "bindings.h"
#include "rows.h"

namespace deeprequest {
namespace {

void check_rows(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK(has_dense_rows(x), "expected rows [T, D] without gaps within a row");
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(1) && weight.is_contiguous(),
              "expected a weight per column");
  TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "rows and weight differ in dtype");
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  check_rows(x, weight);
  const int64_t width = x.size(1), stride = x.stride(0);
  at::Tensor out = at::empty({x.size(0), width}, x.options());
  with_element(x, [&](auto element) {
    using T = decltype(element);
    for_each_row(x.size(0), width, [&](int64_t row) {
      row_kernel<T>().rms_norm(data<T>(x) + row * stride, data<T>(weight),
                               data<T>(out) + row * width, width, static_cast<float>(eps));
    });
  });
  return out;
}

// Overwrites `residual` with the sum; returns its norm.
at::Tensor add_rms_norm(
    const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, double eps) {
  check_rows(x, weight);
  TORCH_CHECK(residual.sizes() == x.sizes() && residual.is_contiguous() &&
                  residual.scalar_type() == x.scalar_type(),
              "the residual must be like the rows, and contiguous");
  const int64_t width = x.size(1), stride = x.stride(0);
  at::Tensor out = at::empty({x.size(0), width}, x.options());
  with_element(x, [&](auto element) {
    using T = decltype(element);
    for_each_row(x.size(0), 2 * width, [&](int64_t row) {
      row_kernel<T>().add_rms_norm(data<T>(x) + row * stride, data<T>(residual) + row * width,
                                   data<T>(weight), data<T>(out) + row * width, width,
                                   static_cast<float>(eps));
    });
  });
  return out;
}

}  // namespace

}  // namespace deeprequest

void bind_norm(pybind11::module_& module) {
  using Free = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("rms_norm", &deeprequest::rms_norm, Free());
  module.def("add_rms_norm", &deeprequest::add_rms_norm, Free());
}
