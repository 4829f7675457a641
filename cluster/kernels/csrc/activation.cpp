// The gated activation as torch sees it.
#include "row_kernel.h"

#include <torch/csrc/utils/pybind.h>

#include "bindings.h"
#include "rows.h"

namespace deeprequest {
namespace {

// [T, 2F] = [gate | up] -> [T, F]
at::Tensor silu_and_mul(const at::Tensor& gate_up) {
  TORCH_CHECK(has_dense_rows(gate_up) && gate_up.size(1) % 2 == 0,
              "expected rows [T, 2F] without gaps within a row");
  const int64_t width = gate_up.size(1) / 2, stride = gate_up.stride(0);
  at::Tensor out = at::empty({gate_up.size(0), width}, gate_up.options());
  with_element(gate_up, [&](auto element) {
    using T = decltype(element);
    for_each_row(gate_up.size(0), 3 * width, [&](int64_t row) {
      const T* gate = data<T>(gate_up) + row * stride;
      row_kernel<T>().silu_and_mul(gate, gate + width, data<T>(out) + row * width, width);
    });
  });
  return out;
}

}  // namespace

}  // namespace deeprequest

void bind_activation(pybind11::module_& module) {
  using Free = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("silu_and_mul", &deeprequest::silu_and_mul, Free());
}
