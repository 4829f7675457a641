// What the kernels of vector units share: the packing of rows, the walk over a tile, the outputs.
//
// Included by files that have chosen their lanes; everything is in an unnamed namespace, so each of
// them gets its own copy compiled for its own instructions.
#pragma once

#include <algorithm>

#include "linear_kernel.h"

namespace linear {
namespace {

inline void put(const Output& out, std::int64_t row, std::int64_t column, Lanes value, Mask lanes) {
  const std::int64_t at = row * out.stride + column;
  if (out.wide) {
    store(static_cast<float*>(out.data) + at, value, lanes);
  } else {
    store(static_cast<bf16*>(out.data) + at, value, lanes);
  }
}

// sum + bias, of whatever type that is
template <class T>
void finish_with(const T* bias, const float* sums, std::int64_t rows, std::int64_t columns,
                 Output out) {
  for (std::int64_t c = 0; c < columns; c += 16) {
    const Mask lanes = first_lanes(columns - c);
    const Lanes added = bias != nullptr ? load(bias + c, lanes) : fill(0);
    for (std::int64_t r = 0; r < rows; ++r) {
      const Lanes sum = load(sums + r * kPanel + c);
      put(out, r, c, bias != nullptr ? sum + added : sum, lanes);
    }
  }
}

[[maybe_unused]] void finish(const float* sums, std::int64_t rows, std::int64_t columns,
                             const Epilogue& epilogue, Output out) {
  finish_with(epilogue.bias, sums, rows, columns, out);
}

[[maybe_unused]] void finish_wide(const float* sums, std::int64_t rows, std::int64_t columns,
                                  const Epilogue& epilogue, Output out) {
  finish_with(epilogue.wide_bias, sums, rows, columns, out);
}

constexpr int kZeroPointLog2 = 7;  // 8-bit activations are stored as signed value + 128

// (sum - 128 * column_sum) * row_scale * column_scale + bias
[[maybe_unused]] void finish_int8(const float* sums, std::int64_t rows, std::int64_t columns,
                                  const Epilogue& epilogue, Output out) {
  for (std::int64_t c = 0; c < columns; c += 16) {
    const Mask lanes = first_lanes(columns - c);
    const std::int64_t bytes = 4 * std::min<std::int64_t>(16, columns - c);
    const Bits offset =
        shift_integers_left<kZeroPointLog2>(load_bytes(epilogue.column_sum + c, bytes));
    const Lanes scale = load(epilogue.column_scale + c, lanes);
    const bool biased = epilogue.bias != nullptr;
    const Lanes bias = biased ? load(epilogue.bias + c, lanes) : fill(0);
    for (std::int64_t r = 0; r < rows; ++r) {
      const Bits sum = load_bits(sums + r * kPanel + c);
      const Lanes value = from_integers(subtract_integers(sum, offset)) *
                          fill(epilogue.row_scale[r]) * scale;
      put(out, r, c, biased ? value + bias : value, lanes);
    }
  }
}

constexpr int kVectorRows = std::min(kSumLanes, 12);

// What was read is not kept for later.
[[maybe_unused]] inline void forget_memory() { asm volatile("" ::: "memory"); }

// Chain: how the sums of a tile grow by one pair of inputs. It names `Value`, of which a row panel
// has kValues for every row and pair; `put`, which writes one pair of all rows into it; and `step`.
template <class Chain>
void pack_rows(Rows x, std::int64_t rows, std::int64_t first, std::int64_t last, void* panel) {
  for (std::int64_t pair = first; pair < last; pair += 16) {
    const std::int64_t bytes = std::min<std::int64_t>(64, 2 * (x.k - 2 * pair));
    Bits words[16];
    for (std::int64_t r = 0; r < 16; ++r) {
      words[r] = r < rows ? load_bytes(x.data + r * x.stride + 2 * pair, bytes) : as_bits(fill(0));
    }
    transpose(words, rows);
    auto* out = static_cast<typename Chain::Value*>(panel) + pair * rows * Chain::kValues;
    const std::int64_t count = std::min<std::int64_t>(16, last - pair);
    for (std::int64_t p = 0; p < count; ++p, out += rows * Chain::kValues) {
      Chain::put(out, rows, first_lanes(rows), words[p]);
    }
  }
}

// `rows` times `width` vectors of 16 outputs.
template <class Chain, int rows, int width>
void accumulate_columns(const typename Chain::Value* x, const bf16* weight, std::int64_t pairs,
                        float* sums, bool fresh, Ahead ahead) {
  Lanes sum[rows][width];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v)
      sum[r][v] = fresh ? fill(0) : load(sums + r * kPanel + 16 * v);
  }
  for (std::int64_t p = 0; p < pairs; ++p) {
    _mm_prefetch(ahead.line, _MM_HINT_T0);
    if constexpr (width == 2) _mm_prefetch(ahead.line + ahead.other, _MM_HINT_T0);
    Chain::template step<rows, width>(sum, weight, x);
    weight += kPairElements;
    x += rows * Chain::kValues;
    ahead.line += ahead.step;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < width; ++v) store(sums + r * kPanel + 16 * v, sum[r][v]);
  }
}

// A panel at once where the sums of all rows fit into the registers, else half after half.
template <class Chain, int rows>
void accumulate_tile(const typename Chain::Value* x, const bf16* weight, std::int64_t pairs,
                     float* sums, bool fresh, Ahead ahead) {
  if constexpr (2 * rows <= kSumLanes) {
    accumulate_columns<Chain, rows, 2>(x, weight, pairs, sums, fresh, ahead);
  } else {
    accumulate_columns<Chain, rows, 1>(x, weight, pairs, sums, fresh, ahead);
    ahead.line += ahead.other;
    accumulate_columns<Chain, rows, 1>(x, weight + kPairElements / 2, pairs, sums + kPanel / 2,
                                       fresh, ahead);
  }
}

template <class Chain, int rows = kVectorRows>
void accumulate(const void* row_panel, const bf16* weight, std::int64_t pairs, std::int64_t count,
                float* sums, bool fresh, Ahead ahead) {
  if (count == rows) {
    accumulate_tile<Chain, rows>(static_cast<const typename Chain::Value*>(row_panel), weight,
                                 pairs, sums, fresh, ahead);
  } else if constexpr (rows > 1) {
    accumulate<Chain, rows - 1>(row_panel, weight, pairs, count, sums, fresh, ahead);
  }
}

// Pairs of a weight panel, 128 bytes each, that stay in the second cache; in the narrower unit's
// smaller first cache, so that its two passes read it there.
constexpr std::int64_t kSlicePairs = kSumLanes >= 24 ? 1024 : 192;

template <class Chain>
constexpr Kernel kernel(const char* name, bool (*supported)(),
                        decltype(Kernel::finish) finish_sums = finish) {
  return {name,
          supported,
          kVectorRows,
          kSlicePairs,
          Chain::kValues * sizeof(typename Chain::Value),
          pack_rows<Chain>,
          accumulate<Chain>,
          finish_sums};
}

}  // namespace
}  // namespace linear
