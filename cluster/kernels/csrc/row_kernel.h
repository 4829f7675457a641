// What is done to one row, in every instruction set: the functions, and which of them serve here.
#pragma once

#include <cstdint>

namespace deeprequest {

struct RopeShape {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
};

struct RowBest {
  float value;
  int64_t id;
  // no NaN and no +inf in the row, and something above -inf
  bool healthy;
};

// T: float, or uint16_t as the bits of a bfloat16.
template <class T>
struct RowKernel {
  // out = x / rms(x) * weight over `width` elements.
  void (*rms_norm)(const T* x, const T* weight, T* out, int64_t width, float eps);
  // residual += x, rounded to T; then out = residual / rms(residual) * weight.
  void (*add_rms_norm)(const T* x, T* residual, const T* weight, T* out, int64_t width, float eps);
  // out = silu(gate) * up over `width` elements; silu is rounded to T before the product.
  void (*silu_and_mul)(const T* gate, const T* up, T* out, int64_t width);
  // Turns the first N + K heads of token[N + 2K, H] in place by cos, sin [H/2] (element i with
  // element i + H/2), then copies keys and values to key_slot and value_slot [K, H].
  void (*rope_and_store)(T* token, const float* cos, const float* sin, T* key_slot, T* value_slot,
                         const RopeShape& shape);
  // The largest of `count` logits, the first of equals.
  RowBest (*best)(const T* logits, int64_t count);
  // log(sum(exp(logits))) of `count` logits in float32.
  float (*logsumexp)(const T* logits, int64_t count);
};

extern const RowKernel<float> AVX2_FLOAT_ROWS, AVX512_FLOAT_ROWS;
extern const RowKernel<uint16_t> AVX2_BF16_ROWS, AVX512_BF16_ROWS;

// The widest that this CPU runs.
template <class T>
const RowKernel<T>& row_kernel();

}  // namespace deeprequest
