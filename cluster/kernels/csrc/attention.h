// Paged attention: what a piece of work is, and the functions that one instruction set offers.
//
//   tile     TILE_KEYS keys at a fixed absolute place: positions [256 t, 256 t + 256)
//   row      one query of one head; the G heads of a kv head are neighbours: row = query * G + head
//   partial  what one tile gives one row: (maximum, sum, weighted values [H])
//
// A row's result is its tiles' partials merged in the order of the tiles, and a partial depends on
// nothing but the row and its tile. So neither the batch, nor the chunking of a prompt, nor the
// number of threads, nor how work is cut can change a bit. With one exception: ATTENTION_BF16_ENGINE
// gives chunks of many rows to the matrix engine and of few to the vector units, which add in another
// order; there the chunking of a prompt can.
#pragma once

#include <cstdint>

namespace deeprequest {

inline constexpr int64_t TILE_KEYS = 256;
inline constexpr int64_t PANEL_KEYS = 64;

// One layer's call. Strides are in elements.
struct AttentionCall {
  const void* queries;  // [T, heads, H], heads contiguous
  int64_t query_stride;
  void* out;  // [T, N, H]
  const void* keys;  // [slots, K, H]
  const void* values;
  int64_t num_kv_heads;
  int64_t group;  // G: query heads per kv head
  int64_t head_dim;
  float scale_log2;  // softmax scale * log2(e)
  float* partials;  // of pieces whose rows are shared, see `first_partial`
};

// Queries of one request against some tiles and kv heads.
struct AttentionPiece {
  const int32_t* blocks;  // the request's row of the block table
  int32_t block_shift;    // log2 of the block size
  int32_t first_query;    // index into T
  int32_t num_queries;
  int32_t first_position;  // of the first query
  int32_t first_kv_head, last_kv_head;
  int32_t first_tile, last_tile;
  int64_t first_partial;  // offset of [tile, kv head, row] partials; -1: the piece is complete
};

// Floats between two rows' partials.
inline int64_t partial_stride(int64_t head_dim) { return (head_dim + 15) / 16 * 16 + 16; }

struct AttentionKernel {
  const char* name;
  // Floats of scratch per thread for pieces of up to `rows` rows of each of `heads` kv heads.
  int64_t (*scratch)(int64_t rows, int64_t heads, int64_t head_dim);
  // `following` (or null) is what the thread runs next, `warm` whether it was `following` before.
  void (*run)(const AttentionCall& call, const AttentionPiece& piece,
              const AttentionPiece* following, bool warm, float* scratch);
  // Merges the partials of one row's tiles in order and writes the row.
  void (*merge)(const AttentionCall& call, const float* partials, int64_t tile_stride,
                int64_t tiles, int64_t query, int64_t head, float* scratch);
};

// float32 arithmetic over a float32 cache, and over a bfloat16 one that is widened
extern const AttentionKernel ATTENTION_FLOAT_AVX2, ATTENTION_FLOAT_AVX512;
extern const AttentionKernel ATTENTION_BF16_AVX2, ATTENTION_BF16_AVX512;
extern const AttentionKernel ATTENTION_BF16_DOT;     // bfloat16 cache, bfloat16 products
extern const AttentionKernel ATTENTION_BF16_ENGINE;  // the same, many rows by the matrix engine
bool attention_engine_supported();

}  // namespace deeprequest
