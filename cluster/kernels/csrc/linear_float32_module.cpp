// Linear layers with float32 weights as Python sees them; see linear_widened.h.
//
// Owns the checks and the allocation. Packing and embedding are those of bfloat16 weights with
// twice the inputs.

#include <ATen/Parallel.h>
#include <ATen/ATen.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>

#include "bindings.h"
#include "linear_kernel.h"

namespace {

using at::Tensor;
using linear::bf16;

bool is_wide(const Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat && (tensor.dim() < 2 || tensor.size(1) <= 1 ||
                                                tensor.stride(1) == 1);
}

Tensor linear_float32(const Tensor& x, const Tensor& packed, std::int64_t n,
                      const std::optional<Tensor>& bias) {
  TORCH_CHECK(!linear::float32_variants().empty(), "this CPU has not the instructions");
  TORCH_CHECK(x.dim() == 2 && is_wide(x), "x must be float32 [M, K] with neighbouring columns");
  const std::int64_t m = x.size(0), k = x.size(1);
  TORCH_CHECK(packed.scalar_type() == at::kFloat && packed.is_contiguous() &&
                  packed.numel() == linear::panels_of(n) * k * linear::kPanel,
              "a packed float32 weight of ", n, " x ", k, " does not look like ", packed.sizes());
  const bool biased = bias.has_value();
  TORCH_CHECK(!biased || (is_wide(*bias) && bias->numel() == n && bias->is_contiguous()),
              "bias must be float32 [", n, "]");
  Tensor out = at::empty({m, n}, x.options());
  if (m == 0 || n == 0) return out;
  const linear::Call call{{static_cast<const bf16*>(x.data_ptr()), 2 * x.stride(0), 2 * k},
                          m,
                          static_cast<const bf16*>(packed.data_ptr()),
                          n,
                          {nullptr, nullptr, nullptr, nullptr,
                           biased ? bias->data_ptr<float>() : nullptr},
                          {out.data_ptr(), n, true}};
  linear::run(*linear::float32_variants().front(), call, at::get_num_threads());
  return out;
}

}  // namespace

void bind_linear_float32(pybind11::module_& module) {
  namespace py = pybind11;
  module.def("linear_float32", &linear_float32, py::arg("x"), py::arg("packed"), py::arg("n"),
             py::arg("bias"), py::call_guard<py::gil_scoped_release>(),
             "x [M, K] W^T + bias -> [M, n], all float32; W packed as bfloat16 [n, 2 K] bits.");
}
