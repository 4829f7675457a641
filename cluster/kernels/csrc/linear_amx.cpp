// Linear tiles by the matrix engine of the CPU (Intel AMX): bfloat16, and uint8 times int8.
//
// A step of 16 pairs of one half of a weight panel is an operand of the engine as it stands: 16 rows
// of 64 bytes, 128 bytes apart. A row panel holds the same step of its rows side by side:
//
//   row panel [ceil(pairs/16)][rows][16 pairs]        two operands of up to 16 rows each
//
//   sums  tmm0 tmm1 | tmm2 tmm3      rows 0 ... 15 | 16 ... 31, each times two halves of the panel
//   rows  tmm4 | tmm5                weights  tmm6  tmm7
//
// The engine adds a step's products to nothing and then to the sum, so steps are the links of a
// row's chain. It takes denormal numbers for zeros.

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,amx-tile,amx-bf16,amx-int8")
#include "lanes_avx512.h"

#include <cstring>

#include "linear_tile.h"
#include "matrix_engine.h"

namespace linear {
namespace {

constexpr std::int64_t kSumBytes = kPanel * sizeof(float);
constexpr std::int64_t kWeightBytes = kPairElements * sizeof(bf16);  // of a pair

thread_local std::int64_t configured_rows = 0;

// The engine's registers for tiles of so many rows; 0 gives the engine back.
void configure(std::int64_t rows) {
  if (rows == configured_rows) return;
  configured_rows = rows;
  if (rows == 0) {
    _tile_release();
    return;
  }
  const auto upper = static_cast<std::uint8_t>(rows < kEngineRows ? rows : kEngineRows);
  const auto lower = static_cast<std::uint8_t>(rows - upper);
  configure_engine({upper, upper, lower, lower, upper, lower, kEngineRows, kEngineRows});
}

void leave() { configure(0); }

void pack_steps(Rows x, std::int64_t rows, std::int64_t first, std::int64_t last, void* panel) {
  for (std::int64_t pair = first; pair < last; pair += kPairStep) {
    const std::int64_t bytes = std::min<std::int64_t>(64, 2 * (x.k - 2 * pair));
    char* out = static_cast<char*>(panel) + pair * rows * 4;
    for (std::int64_t r = 0; r < rows; ++r) {
      store_bits(out + r * kEngineBytes, load_bytes(x.data + r * x.stride + 2 * pair, bytes));
    }
  }
}

// What the engine multiplies: the upper 16 rows of a tile, and the lower ones.
struct Bf16Engine {
  static inline void multiply_upper() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  static inline void multiply_lower() {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
};

struct Int8Engine {
  static inline void multiply_upper() {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
  }
  static inline void multiply_lower() {
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
};

template <class Engine, bool tall>
inline void step(const char* x, const char* weight) {
  _tile_loadd(6, weight, kWeightBytes);
  _tile_loadd(7, weight + kEngineBytes, kWeightBytes);
  _tile_loadd(4, x, kEngineBytes);
  Engine::multiply_upper();
  if constexpr (tall) {
    _tile_loadd(5, x + kEngineRows * kEngineBytes, kEngineBytes);
    Engine::multiply_lower();
  }
}

template <bool tall>
void load_sums(const float* sums, bool fresh) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (tall) {
      _tile_zero(2);
      _tile_zero(3);
    }
    return;
  }
  _tile_loadd(0, sums, kSumBytes);
  _tile_loadd(1, sums + kPanel / 2, kSumBytes);
  if constexpr (tall) {
    _tile_loadd(2, sums + kEngineRows * kPanel, kSumBytes);
    _tile_loadd(3, sums + kEngineRows * kPanel + kPanel / 2, kSumBytes);
  }
}

template <bool tall>
void store_sums(float* sums) {
  _tile_stored(0, sums, kSumBytes);
  _tile_stored(1, sums + kPanel / 2, kSumBytes);
  if constexpr (tall) {
    _tile_stored(2, sums + kEngineRows * kPanel, kSumBytes);
    _tile_stored(3, sums + kEngineRows * kPanel + kPanel / 2, kSumBytes);
  }
}

// Into the second cache where the rows of a tall tile need all of the first one.
template <bool tall>
inline void fetch(Ahead& ahead) {
  constexpr auto place = tall ? _MM_HINT_T1 : _MM_HINT_T0;
  if (ahead.step == 0) return;
  for (std::int64_t pair = 0; pair < kPairStep; ++pair) {
    _mm_prefetch(ahead.line, place);
    if (ahead.other != 0) _mm_prefetch(ahead.line + ahead.other, place);
    ahead.line += ahead.step;
  }
}

template <class Engine, bool tall>
void accumulate_tile(const char* x, const char* weight, std::int64_t pairs, std::int64_t rows,
                     float* sums, bool fresh, Ahead ahead) {
  load_sums<tall>(sums, fresh);
  for (; pairs >= kPairStep; pairs -= kPairStep) {
    fetch<tall>(ahead);
    step<Engine, tall>(x, weight);
    x += rows * kEngineBytes;
    weight += kPairStep * kWeightBytes;
  }
  if (pairs > 0) {  // the weight ends within a step
    alignas(64) char rest[kPairStep * kWeightBytes] = {};
    std::memcpy(rest, weight, pairs * kWeightBytes);
    written();
    step<Engine, tall>(x, rest);
  }
  store_sums<tall>(sums);
}

template <class Engine>
void accumulate_by_engine(const void* row_panel, const bf16* weight, std::int64_t pairs,
                          std::int64_t rows, float* sums, bool fresh, Ahead ahead) {
  configure(rows);
  const auto* x = static_cast<const char*>(row_panel);
  const auto* w = reinterpret_cast<const char*>(weight);
  if (rows > kEngineRows) {
    accumulate_tile<Engine, true>(x, w, pairs, rows, sums, fresh, ahead);
  } else {
    accumulate_tile<Engine, false>(x, w, pairs, rows, sums, fresh, ahead);
  }
}

// As `finish`, whole rows of a panel at once by the CPU's own rounding.
void finish_panel(const float* sums, std::int64_t rows, std::int64_t columns,
                  const Epilogue& epilogue, Output out) {
  if (columns < kPanel || out.wide) return finish(sums, rows, columns, epilogue, out);
  Lanes low_bias = fill(0), high_bias = fill(0);
  if (epilogue.bias != nullptr) {
    low_bias = load(epilogue.bias);
    high_bias = load(epilogue.bias + 16);
  }
  bf16* row = static_cast<bf16*>(out.data);
  for (std::int64_t r = 0; r < rows; ++r, row += out.stride, sums += kPanel) {
    const Lanes low = load(sums) + low_bias, high = load(sums + 16) + high_bias;
    store_bits(row, (Bits)_mm512_cvtne2ps_pbh(high, low));
  }
}

// 16 KiB of weights and as much of the rows stay in the first cache while a tile passes.
constexpr std::int64_t kEnginePairs = 128;

template <class Engine>
constexpr Kernel engine_kernel(const char* name, decltype(Kernel::finish) finish_sums) {
  return {name,        engine_supported, 2 * kEngineRows, kEnginePairs,
          4,           pack_steps, accumulate_by_engine<Engine>,
          finish_sums, leave};
}

}  // namespace

const Kernel kAmxBf16 = engine_kernel<Bf16Engine>("amx", finish_panel);
const Kernel kAmxInt8 = engine_kernel<Int8Engine>("amx", finish_int8);

}  // namespace linear
