// Who computes what in one step: requests cut into pieces of about equal cost.
//
// Owns the cutting. It may follow the number of threads freely: no cut changes a result (see
// `attention.h`).
#pragma once

#include <cstdint>
#include <vector>

#include "attention.h"

namespace deeprequest {

// A step's requests. `borders` [B + 1], `firsts` [B], `lengths` [B], `blocks` [B, block_columns].
struct AttentionBatch {
  int64_t num_requests;
  const int32_t* borders;
  const int32_t* firsts;  // where the queries begin that are asked for
  const int32_t* lengths;
  const int32_t* blocks;
  int64_t block_columns;
  int32_t block_shift;
};

struct HeadShape {
  int64_t num_kv_heads;
  int64_t group;
  int64_t head_dim;
};

// The queries of pieces that share rows: their partials are to be merged.
struct AttentionMerge {
  int32_t first_query;
  int32_t num_queries;
  int32_t first_position;
  int64_t first_partial;
};

struct AttentionSchedule {
  std::vector<AttentionPiece> pieces;  // the most expensive first
  std::vector<AttentionMerge> merges;
  int64_t partial_floats = 0;
  int64_t most_rows = 0;
  int threads = 1;
};

AttentionSchedule cut_attention(const AttentionBatch& batch, const HeadShape& shape, int threads);

}  // namespace deeprequest
