// The 8-bit linear layers as Python sees them: tensors in, tensors out.
//
// Owns the checks and the allocation. Weights are int8 with a scale per output, activations uint8
// with a scale per row that is found on the way, so a row's neighbours never change its result.

#include <ATen/Parallel.h>
#include <ATen/ATen.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>

#include "bindings.h"
#include "linear_int8.h"
#include "linear_memory.h"
#include "linear_pack.h"

namespace {

using at::Tensor;
using linear::bf16;

constexpr int kZeroPoint = 128;

bf16* bits(const Tensor& tensor) { return static_cast<bf16*>(tensor.data_ptr()); }

std::int64_t packed_bytes(std::int64_t n, std::int64_t k) {
  return linear::panels_of(n) * linear::kPanel * linear::int8_width(k);
}

void check_rows(const Tensor& rows) {
  TORCH_CHECK(rows.dim() == 2 && rows.scalar_type() == at::kBFloat16 &&
                  (rows.size(1) <= 1 || rows.stride(1) == 1),
              "rows must be bfloat16 [M, K] with neighbouring columns");
}

Tensor empty_packed_int8(std::int64_t n, std::int64_t k) {
  std::shared_ptr<void> memory = linear::huge_memory(packed_bytes(n, k));
  return at::from_blob(memory.get(), {packed_bytes(n, k)}, [memory](void*) {},
                       at::TensorOptions().dtype(at::kChar));
}

void pack_int8_rows_(const Tensor& packed, const Tensor& scale, const Tensor& sum,
                     const Tensor& rows, std::int64_t row_start, std::int64_t n) {
  check_rows(rows);
  const std::int64_t count = rows.size(0), k = rows.size(1), width = linear::int8_width(k);
  TORCH_CHECK(packed.numel() == packed_bytes(n, k) && scale.numel() == n && sum.numel() == n,
              "a packed int8 weight of ", n, " x ", k, " does not look like ", packed.sizes());
  TORCH_CHECK(row_start >= 0 && row_start + count <= n, "rows ", row_start,
              " + ", count, " of ", n);
  const Tensor integers = at::empty({count, width}, at::kByte);
  auto* values = static_cast<std::uint8_t*>(integers.data_ptr());
  const int threads = at::get_num_threads();
  linear::quantize_rows({bits(rows), rows.stride(0), k}, count, 0, values,
                        scale.data_ptr<float>() + row_start,
                        sum.data_ptr<std::int32_t>() + row_start, threads);
  linear::pack(bits(packed), reinterpret_cast<const bf16*>(values), width / 2, count, row_start, n,
               width / 2, threads);
}

Tensor linear_int8(const Tensor& x, const Tensor& packed, const Tensor& scale, const Tensor& sum,
                   const std::optional<Tensor>& bias, at::ScalarType out_dtype,
                   std::int64_t variant) {
  check_rows(x);
  const auto& kernels = linear::int8_variants();
  TORCH_CHECK(variant >= 0 && variant < static_cast<std::int64_t>(kernels.size()),
              "no 8-bit variant ", variant, " on this CPU");
  const std::int64_t m = x.size(0), k = x.size(1), n = scale.numel();
  const std::int64_t width = linear::int8_width(k);
  TORCH_CHECK(packed.numel() == packed_bytes(n, k), "x has ", k, " inputs, the weight has not");
  Tensor out = at::empty({m, n}, x.options().dtype(out_dtype));
  if (m == 0) return out;
  const int threads = at::get_num_threads();
  const Tensor integers = at::empty({m, width}, at::kByte), scales = at::empty({m}, at::kFloat);
  auto* values = static_cast<std::uint8_t*>(integers.data_ptr());
  linear::quantize_rows({bits(x), x.stride(0), k}, m, kZeroPoint, values,
                        scales.data_ptr<float>(), nullptr, threads);
  const linear::Call call{{reinterpret_cast<const bf16*>(values), width / 2, width / 2},
                          m,
                          bits(packed),
                          n,
                          {bias.has_value() ? bits(*bias) : nullptr, scale.data_ptr<float>(),
                           sum.data_ptr<std::int32_t>(), scales.data_ptr<float>()},
                          {out.data_ptr(), n, out_dtype == at::kFloat}};
  linear::run(*kernels[variant], call, threads);
  return out;
}

// Row ids[t] as numbers again: integers times the row's scale.
Tensor int8_embedding(const Tensor& packed, const Tensor& scale, std::int64_t k,
                      const Tensor& ids) {
  const std::int64_t n = scale.numel(), width = linear::int8_width(k);
  TORCH_CHECK(packed.numel() == packed_bytes(n, k), "the weight has not ", k, " inputs");
  TORCH_CHECK(ids.scalar_type() == at::kLong && ids.dim() == 1, "ids must be int64 [T]");
  const Tensor wanted = ids.contiguous();
  const auto* id = static_cast<const std::int64_t*>(wanted.data_ptr());
  for (std::int64_t t = 0; t < wanted.numel(); ++t) {
    TORCH_CHECK_INDEX(id[t] >= 0 && id[t] < n, "row ", id[t], " of ", n);
  }
  const Tensor integers = at::empty({wanted.numel(), width}, at::kChar);
  linear::gather(bits(packed), width / 2, id, wanted.numel(), bits(integers),
                 at::get_num_threads());
  const Tensor scales = scale.index_select(0, wanted).unsqueeze(1);
  return (integers.narrow(1, 0, k).to(at::kFloat) * scales).to(at::kBFloat16);
}

std::vector<std::string> int8_variants() {
  std::vector<std::string> names;
  for (const linear::Kernel* kernel : linear::int8_variants()) names.emplace_back(kernel->name);
  return names;
}

}  // namespace

void bind_linear_int8(pybind11::module_& module) {
  namespace py = pybind11;
  const auto free_running = py::call_guard<py::gil_scoped_release>();
  module.def("int8_variants", &int8_variants,
             "Names of what multiplies 8-bit weights on this CPU; all give the same bits.");
  module.def("empty_packed_int8", &empty_packed_int8, py::arg("n"), py::arg("k"), free_running,
             "An unfilled packed int8 weight of [n, k] on huge pages.");
  module.def("pack_int8_rows_", &pack_int8_rows_, py::arg("packed"), py::arg("scale"),
             py::arg("sum"), py::arg("rows"), py::arg("row_start"), py::arg("n"), free_running,
             "Quantise bfloat16 rows into rows row_start ... of a packed weight.");
  module.def("int8_embedding", &int8_embedding, py::arg("packed"), py::arg("scale"), py::arg("k"),
             py::arg("ids"), free_running, "Rows ids [T] of a packed weight, bfloat16 [T, k].");
  module.def("linear_int8", &linear_int8, py::arg("x"), py::arg("packed"), py::arg("scale"),
             py::arg("sum"), py::arg("bias"), py::arg("out_dtype"), py::arg("variant"), free_running,
             "x [M, K] W^T + bias with x quantised row by row -> [M, n], rounded to out_dtype.");
}
