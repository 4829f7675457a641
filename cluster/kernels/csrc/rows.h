// Work that is independent per row: how it is spread over threads, and how T is chosen.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace deeprequest {

// Elements below which waking other threads costs more than it saves.
inline constexpr int64_t SMALL_WORK = 1 << 14;

// Calls body(row) for every row; `elements`: how much a row touches.
template <class Body>
void for_each_row(int64_t rows, int64_t elements, Body body) {
  const int64_t wanted = std::max<int64_t>(1, rows * elements / SMALL_WORK);
  const int threads = static_cast<int>(std::min<int64_t>({at::get_num_threads(), rows, wanted}));
  if (threads <= 1) {
    for (int64_t row = 0; row < rows; ++row) body(row);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) body(row);
}

// Calls body(T{}) with float or bfloat16 bits (uint16_t).
template <class Body>
void with_element(const at::Tensor& tensor, Body body) {
  if (tensor.scalar_type() == at::kFloat) return body(float{});
  TORCH_CHECK(tensor.scalar_type() == at::kBFloat16, "expected float32 or bfloat16, not ",
              tensor.scalar_type());
  body(uint16_t{});
}

// [rows, width] whose rows have no gaps; torch may give any stride to a dimension of one.
inline bool has_dense_rows(const at::Tensor& tensor) {
  return tensor.dim() == 2 && (tensor.stride(1) == 1 || tensor.size(1) <= 1 || tensor.size(0) == 0);
}

template <class T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace deeprequest
