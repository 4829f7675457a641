// What a linear layer with bfloat16 weights is made of, without torch and without threads.
//
// Owns the packed form of a weight and the table of functions an instruction set offers. A weight
// W [N, K] is kept as panels of 32 outputs; inside a panel two neighbouring inputs stand together,
// as the bfloat16 dot product wants them:
//
//   packed [ceil(N/32)][ceil(K/2)][32][2]     element (n, k) at [n/32][k/2][n%32][k%2]
//
// One step over a pair of inputs thus reads 128 consecutive bytes, and a whole weight is one stream.
// Missing rows and columns are zeros.
//
// Every element of the output is one chain of additions over the pairs of K (or over whole steps of
// kPairStep of them), in order, whatever the number of rows, the row's place, the tile or the number
// of threads: a row's bits depend on the row, the weight and the variant alone. Splitting K stores
// the chain and takes it up again.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace linear {

using bf16 = std::uint16_t;  // the bits of a bfloat16

constexpr std::int64_t kPanel = 32;                  // outputs of a panel
constexpr std::int64_t kPairElements = 2 * kPanel;   // weights of one pair of inputs in a panel
constexpr std::int64_t kPairStep = 16;               // K is cut at multiples of so many pairs
constexpr std::int64_t kMaxTileRows = 32;            // rows of the highest tile of any kernel

inline std::int64_t panels_of(std::int64_t n) { return (n + kPanel - 1) / kPanel; }
inline std::int64_t pairs_of(std::int64_t k) { return (k + 1) / 2; }

// Rows of activations [rows, k]; `stride` in elements from row to row.
struct Rows {
  const bf16* data;
  std::int64_t stride;
  std::int64_t k;
};

// Where the sums of one tile go: row r to out + r * stride (elements of the output's type).
struct Output {
  void* data;
  std::int64_t stride;
  bool wide;  // float32 instead of bfloat16
};

// What is read from memory while a tile is computed: one or two cache lines for every pair of inputs.
struct Ahead {
  const char* line;
  std::int64_t step;   // bytes from pair to pair
  std::int64_t other;  // bytes to a second line; 0: there is none
};

// What makes a sum an output, for the columns and rows from some point on; unused parts are null.
struct Epilogue {
  const bf16* bias;                // [n]
  const float* column_scale;       // [n] of quantised weights
  const std::int32_t* column_sum;  // [n] sums of quantised weights
  const float* row_scale;          // [m] of quantised activations
  const float* wide_bias = nullptr;  // [n] in float32

  Epilogue at(std::int64_t row, std::int64_t column) const {
    return {bias == nullptr ? nullptr : bias + column,
            column_scale == nullptr ? nullptr : column_scale + column,
            column_sum == nullptr ? nullptr : column_sum + column,
            row_scale == nullptr ? nullptr : row_scale + row,
            wide_bias == nullptr ? nullptr : wide_bias + column};
  }
};

// The functions of one instruction set. `rows` is 1 ... tile_rows.
struct Kernel {
  const char* name;
  bool (*supported)();
  std::int64_t tile_rows;    // rows whose sums fit into the registers
  std::int64_t slice_pairs;  // of a weight panel that several tiles pass over
  std::size_t pair_bytes;    // what one row's pair of inputs takes in a row panel

  // Pairs first ... last - 1 of the row panel of `rows` rows; `first` is a multiple of kPairStep.
  // Pair p stands at p * rows * pair_bytes, or in the whole step of kPairStep that holds it.
  void (*pack_rows)(Rows x, std::int64_t rows, std::int64_t first, std::int64_t last, void* panel);

  // sums [rows][32] += row panel x weight panel over `pairs` pairs; `fresh`: the sums start at zero.
  void (*accumulate)(const void* row_panel, const bf16* weight, std::int64_t pairs,
                     std::int64_t rows, float* sums, bool fresh, Ahead ahead);

  // out[r][0 ... columns) = the outputs of sums[r], rounded once.
  void (*finish)(const float* sums, std::int64_t rows, std::int64_t columns,
                 const Epilogue& epilogue, Output out);

  // What a thread does after its last tile; null: nothing.
  void (*leave)() = nullptr;
};

extern const Kernel kAmxBf16;     // the CPU's matrix engine
extern const Kernel kAvx512Bf16;  // the CPU's bfloat16 dot product
extern const Kernel kAvx512;      // float32 products of widened weights
extern const Kernel kAvx2;        // the same, to the same bits

extern const Kernel kAmxInt8;     // int8 x uint8 (see linear_int8.h): the matrix engine
extern const Kernel kAvx512Vnni;  // the vector units' dot product
extern const Kernel kAvx2Int8;    // products of 16 bits

extern const Kernel kAvx512Wide;  // float32 weights
extern const Kernel kAvx2Wide;

// The kernels this CPU can run, the likely fastest first.
const std::vector<const Kernel*>& variants();

// The same for 8-bit weights. Their sums are exact, so all give the same bits.
const std::vector<const Kernel*>& int8_variants();

// The same for float32 weights: one kernel, or none.
const std::vector<const Kernel*>& float32_variants();

struct Call {
  Rows x;
  std::int64_t m;
  const bf16* packed;
  std::int64_t n;
  Epilogue epilogue;
  Output out;
};

// out [m, n] = x W^T + bias on `threads` threads.
void run(const Kernel& kernel, const Call& call, int threads);

}  // namespace linear
