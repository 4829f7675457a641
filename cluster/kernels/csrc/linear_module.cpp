// The linear layers as Python sees them: tensors in, tensors out.
//
// Owns the checks and the allocation; the arithmetic is in linear_run.cpp and below. Everything
// runs without the interpreter's lock.

#include <ATen/Parallel.h>
#include <ATen/ATen.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>

#include "bindings.h"
#include "linear_kernel.h"
#include "linear_memory.h"
#include "linear_pack.h"

namespace {

using at::Tensor;
using linear::bf16;

bf16* bits(const Tensor& tensor) { return static_cast<bf16*>(tensor.data_ptr()); }

Tensor huge_empty(std::int64_t nbytes) {
  TORCH_CHECK(nbytes >= 0, "huge_empty: ", nbytes, " bytes");
  std::shared_ptr<void> memory = linear::huge_memory(nbytes);
  void* data = memory.get();
  return at::from_blob(data, {nbytes}, [memory](void*) {}, at::TensorOptions().dtype(at::kByte));
}

void check_packed(const Tensor& packed, std::int64_t n, std::int64_t k) {
  TORCH_CHECK(packed.scalar_type() == at::kBFloat16 && packed.is_contiguous() &&
                  packed.numel() ==
                      linear::panels_of(n) * linear::pairs_of(k) * linear::kPairElements,
              "a packed bfloat16 weight of ", n, " x ", k, " does not look like ", packed.sizes());
}

Tensor empty_packed(std::int64_t n, std::int64_t k) {
  const std::int64_t panels = linear::panels_of(n), pairs = linear::pairs_of(k);
  return huge_empty(panels * pairs * linear::kPairElements * sizeof(bf16))
      .view(at::kBFloat16)
      .view({panels, pairs, linear::kPanel, 2});
}

void pack_rows_(const Tensor& packed, const Tensor& rows, std::int64_t row_start, std::int64_t n,
                std::int64_t k) {
  check_packed(packed, n, k);
  TORCH_CHECK(rows.dim() == 2 && rows.scalar_type() == at::kBFloat16 && rows.size(1) == k &&
                  (k <= 1 || rows.stride(1) == 1),
              "rows must be bfloat16 [R, ", k, "] with neighbouring columns");
  TORCH_CHECK(row_start >= 0 && row_start + rows.size(0) <= n,
              "rows ", row_start, " + ", rows.size(0), " of ", n);
  linear::pack(bits(packed), bits(rows), rows.stride(0), rows.size(0), row_start, n, k,
               at::get_num_threads());
}

Tensor pack_linear(const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2, "a weight is a matrix");
  const Tensor packed = empty_packed(weight.size(0), weight.size(1));
  pack_rows_(packed, weight, 0, weight.size(0), weight.size(1));
  return packed;
}

Tensor packed_embedding(const Tensor& packed, std::int64_t n, std::int64_t k, const Tensor& ids) {
  check_packed(packed, n, k);
  TORCH_CHECK(ids.scalar_type() == at::kLong && ids.dim() == 1, "ids must be int64 [T]");
  const Tensor wanted = ids.contiguous();
  const std::int64_t count = wanted.numel();
  const auto* id = static_cast<const std::int64_t*>(wanted.data_ptr());
  for (std::int64_t t = 0; t < count; ++t) {
    TORCH_CHECK_INDEX(id[t] >= 0 && id[t] < n, "row ", id[t], " of ", n);
  }
  Tensor out = at::empty({count, k}, packed.options());
  linear::gather(bits(packed), k, id, count, bits(out), at::get_num_threads());
  return out;
}

Tensor unpack_linear(const Tensor& packed, std::int64_t n, std::int64_t k) {
  return packed_embedding(packed, n, k, at::arange(n, at::kLong));
}

Tensor linear_forward(const Tensor& x, const Tensor& packed, std::int64_t n,
                      const std::optional<Tensor>& bias, at::ScalarType out_dtype,
                      std::int64_t variant) {
  const auto& kernels = linear::variants();
  TORCH_CHECK(variant >= 0 && variant < static_cast<std::int64_t>(kernels.size()),
              "no variant ", variant, " on this CPU");
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kBFloat16 &&
                  (x.size(1) <= 1 || x.stride(1) == 1),
              "x must be bfloat16 [M, K] with neighbouring columns");
  TORCH_CHECK(out_dtype == at::kBFloat16 || out_dtype == at::kFloat, "out_dtype ", out_dtype);
  const std::int64_t m = x.size(0), k = x.size(1);
  check_packed(packed, n, k);
  const bool biased = bias.has_value();
  TORCH_CHECK(!biased || (bias->scalar_type() == at::kBFloat16 && bias->numel() == n &&
                          bias->is_contiguous()),
              "bias must be bfloat16 [", n, "]");
  Tensor out = at::empty({m, n}, x.options().dtype(out_dtype));
  if (m == 0 || n == 0) return out;
  const linear::Call call{{bits(x), x.stride(0), k},
                          m,
                          bits(packed),
                          n,
                          {biased ? bits(*bias) : nullptr, nullptr, nullptr, nullptr},
                          {out.data_ptr(), n, out_dtype == at::kFloat}};
  linear::run(*kernels[variant], call, at::get_num_threads());
  return out;
}

std::vector<std::string> linear_variants() {
  std::vector<std::string> names;
  for (const linear::Kernel* kernel : linear::variants()) names.emplace_back(kernel->name);
  return names;
}

}  // namespace

void bind_linear(pybind11::module_& module) {
  namespace py = pybind11;
  const auto free_running = py::call_guard<py::gil_scoped_release>();
  module.def("linear_variants", &linear_variants,
             "Names of what this CPU can run, the likely fastest first; the index is the variant.");
  module.def("huge_empty", &huge_empty, py::arg("nbytes"), free_running,
             "uint8 [nbytes] on huge pages, aligned to a cache line, zeroed.");
  module.def("empty_packed", &empty_packed, py::arg("n"), py::arg("k"), free_running,
             "An unfilled packed weight of [n, k] on huge pages.");
  module.def("pack_linear", &pack_linear, py::arg("weight"), free_running,
             "A bfloat16 weight [N, K] in packed form.");
  module.def("pack_rows_", &pack_rows_, py::arg("packed"), py::arg("rows"), py::arg("row_start"),
             py::arg("n"), py::arg("k"), free_running,
             "Fill rows row_start ... of a packed weight; nothing else is written.");
  module.def("unpack_linear", &unpack_linear, py::arg("packed"), py::arg("n"), py::arg("k"),
             free_running, "The weight [n, k] of its packed form.");
  module.def("packed_embedding", &packed_embedding, py::arg("packed"), py::arg("n"), py::arg("k"),
             py::arg("ids"), free_running, "Rows ids [T] of a packed weight, [T, k].");
  module.def("linear", &linear_forward, py::arg("x"), py::arg("packed"), py::arg("n"),
             py::arg("bias"), py::arg("out_dtype"), py::arg("variant"), free_running,
             "x [M, K] W^T + bias in float32 sums -> [M, n], rounded once to out_dtype.");
}
