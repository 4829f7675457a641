// Attention with the matrix engine of the CPU (Intel AMX) where many rows meet one tile of keys.
//
// The packed tile (see attention_tile.h) holds the engine's operands as they stand: 16 words of a
// head times 16 keys, and 16 words of keys times 16 columns.
//
//   tmm0 ... tmm3  scores of 16 rows against a panel of 64 keys, or values in 64 columns
//   tmm4           queries, or weights of keys
//   tmm5 tmm6      keys, or values
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,amx-int8")

#include "attention_pair.h"
#include "matrix_engine.h"

namespace deeprequest {
namespace {

constexpr int64_t WORD = sizeof(float);

inline void configure(int rows) {
  const auto n = static_cast<std::uint8_t>(rows);
  configure_engine({n, n, n, n, n, kEngineRows, kEngineRows, 0});
}

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// tmm0 ... tmm(NV - 1) += rows (16 words of each) times NV operands that lie 64 bytes apart.
template <int NV>
inline void multiply(const float* rows, int64_t row_bytes, const float* operands,
                     int64_t operand_bytes) {
  _tile_loadd(4, rows, row_bytes);
  _tile_loadd(5, operands, operand_bytes);
  _tile_dpbf16ps(0, 4, 5);
  _tile_loadd(6, operands + 16, operand_bytes);
  _tile_dpbf16ps(1, 4, 6);
  if constexpr (NV == 4) {
    _tile_loadd(5, operands + 32, operand_bytes);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(6, operands + 48, operand_bytes);
    _tile_dpbf16ps(3, 4, 6);
  }
}

template <int NV>
inline void store_sums(float* out, int64_t row_bytes) {
  _tile_stored(0, out, row_bytes);
  _tile_stored(1, out + 16, row_bytes);
  if constexpr (NV == 4) {
    _tile_stored(2, out + 32, row_bytes);
    _tile_stored(3, out + 48, row_bytes);
  }
}

// Scores against the first `count` keys of the tile, rounded up to whole panels.
void score(const TileView& tile, const float* queries, int64_t count,
           float (*scores)[TILE_KEYS]) {
  for (int64_t key = 0; key < count; key += PANEL_KEYS) {
    const float* panel = tile.keys + key * tile.steps;
    zero_sums();
    for (int64_t step = 0; step < tile.steps; step += kEngineRows)
      multiply<4>(queries + step, tile.columns * WORD, panel + step * PANEL_KEYS,
                  PANEL_KEYS * WORD);
    store_sums<4>(scores[0] + key, TILE_KEYS * WORD);
  }
}

template <int NV>
void weigh(const TileView& tile, int64_t column, const float (*weights)[TILE_KEYS], int64_t words,
           float* out, int64_t out_bytes) {
  zero_sums();
  for (int64_t word = 0; word < words; word += kEngineRows)
    multiply<NV>(weights[0] + word, TILE_KEYS * WORD, tile.values + word * tile.columns + column,
                 tile.columns * WORD);
  store_sums<NV>(out, out_bytes);
}

struct EngineMath : PairMath {
  static constexpr int64_t ROWS = kEngineRows;

  // Heads must be whole steps of the engine, see `run`. Queries and partials of neighbouring rows
  // are equally far apart.
  static void attend_rows(int n, const TileView& tile, const float* const* queries,
                          const int64_t* visible, float* const* partials) {
    alignas(64) float scores[ROWS][TILE_KEYS];
    alignas(64) float weights[ROWS][TILE_KEYS];
    const int64_t apart = n > 1 ? (partials[1] - partials[0]) * WORD : kEngineBytes;
    configure(n);
    written();
    score(tile, queries[0], visible[n - 1], scores);
    const int64_t words =
        soften_rows<PairMath>(n, scores, weights, visible, tile.scale_log2, partials);
    written();
    for (int64_t column = 0; column < tile.columns; column += 64) {
      float* out = partials[0] + PARTIAL_VALUES + column;
      if (tile.columns - column >= 64) {
        weigh<4>(tile, column, weights, words, out, apart);
      } else {
        weigh<2>(tile, column, weights, words, out, apart);
      }
    }
  }
};

// Heads of other sizes, and pieces too small to be packed, are left to the vector units.
void run(const AttentionCall& call, const AttentionPiece& piece, const AttentionPiece* following,
         bool warm, float* scratch) {
  if (call.head_dim % 32 != 0 || piece.num_queries * call.group <= DIRECT_ROWS) {
    run_piece<PairMath>(call, piece, following, warm, scratch);
    return;
  }
  run_piece<EngineMath>(call, piece, following, warm, scratch);
  _tile_release();
}

}  // namespace

const AttentionKernel ATTENTION_BF16_ENGINE = {"amx", Scratch::words, run, merge_row<PairMath>};

bool attention_engine_supported() { return engine_supported(); }

}  // namespace deeprequest
