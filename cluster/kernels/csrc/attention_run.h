// One piece of attention from start to end: tile after tile, kv head after kv head.
//
// Included only by files that have chosen their lanes.
#pragma once

#include "attention_direct.h"

namespace deeprequest {
namespace {

constexpr int64_t MAX_ROWS = 16;  // of any group

// A thread's scratch, cut up. Everything is a multiple of 64 bytes.
struct Scratch {
  float* keys;
  float* values;
  float* queries;   // [kv head][row][H]
  float* totals;    // [kv head][row] partials
  float* partials;  // [MAX_ROWS] partials

  static int64_t words(int64_t rows, int64_t heads, int64_t head_dim) {
    const int64_t columns = (head_dim + 15) / 16 * 16;
    return 2 * TILE_KEYS * columns + rows * heads * (columns + partial_stride(head_dim)) +
           MAX_ROWS * partial_stride(head_dim);
  }

  Scratch(float* memory, int64_t rows, int64_t heads, int64_t head_dim) {
    const int64_t columns = (head_dim + 15) / 16 * 16;
    keys = memory;
    values = keys + TILE_KEYS * columns;
    queries = values + TILE_KEYS * columns;
    totals = queries + rows * heads * columns;
    partials = totals + rows * heads * partial_stride(head_dim);
  }
};

template <class Math>
class PieceRun {
 public:
  using Element = typename Math::Element;

  PieceRun(const AttentionCall& call, const AttentionPiece& piece, float* memory)
      : call_(call),
        piece_(piece),
        heads_(piece.last_kv_head - piece.first_kv_head),
        rows_(piece.num_queries * call.group),
        steps_(call.head_dim / Math::PER),
        columns_((call.head_dim + 15) / 16 * 16),
        stride_(partial_stride(call.head_dim)),
        scratch_(memory, rows_, heads_, call.head_dim) {}

  // `following`: the thread's next piece; `warm`: this one was read ahead by the one before.
  void run(const AttentionPiece* following, bool warm) {
    int64_t slots[2][TILE_KEYS];
    int64_t count = tile_slots(piece_, piece_.first_tile, slots[0]);
    if (!warm) Ahead(call_, piece_, sizeof(Element), slots[0], count, 0).step();
    pack_queries();
    for (int64_t tile = piece_.first_tile; tile < piece_.last_tile; ++tile) {
      const int64_t* here = slots[(tile - piece_.first_tile) % 2];
      int64_t* next = slots[(tile - piece_.first_tile + 1) % 2];
      const bool last = tile + 1 == piece_.last_tile;
      const AttentionPiece* ahead_piece = last ? following : &piece_;
      const int64_t steps = ahead_steps(count);
      Ahead ahead;
      int64_t next_count = 0;
      if (ahead_piece) {
        next_count = tile_slots(*ahead_piece, last ? following->first_tile : tile + 1, next);
        ahead = Ahead(call_, *ahead_piece, sizeof(Element), next, next_count, steps);
      }
      for (int64_t head = piece_.first_kv_head; head < piece_.last_kv_head; ++head)
        attend_tile(tile, head, here, count, ahead);
      count = next_count;
    }
    if (!is_shared()) finish();
  }

 private:
  bool is_shared() const { return piece_.first_partial >= 0; }

  bool is_direct() const { return rows_ <= DIRECT_ROWS; }

  int64_t row_index(int64_t head, int64_t row) const {
    return (head - piece_.first_kv_head) * rows_ + row;
  }

  float* total(int64_t head, int64_t row) const {
    return scratch_.totals + row_index(head, row) * stride_;
  }

  // Where a partial of this piece goes when other threads work on the same rows.
  float* shared(int64_t tile, int64_t head, int64_t row) const {
    return call_.partials + piece_.first_partial +
           ((tile * call_.num_kv_heads + head) * rows_ + row) * stride_;
  }

  void pack_queries() {
    for (int64_t head = piece_.first_kv_head; head < piece_.last_kv_head; ++head) {
      for (int64_t row = 0; row < rows_; ++row) {
        const Element* query = static_cast<const Element*>(call_.queries) +
                               (piece_.first_query + row / call_.group) * call_.query_stride +
                               (head * call_.group + row % call_.group) * call_.head_dim;
        float* packed = scratch_.queries + row_index(head, row) * columns_;
        for (int64_t step = 0; step < steps_; step += 16) {
          const Mask lanes = first_lanes(steps_ - step);
          store_words(packed + step, Math::load_words(query + step * Math::PER, lanes), lanes);
        }
      }
    }
  }

  // How often a tile of `count` keys gives the time to read ahead.
  int64_t ahead_steps(int64_t count) const {
    const int64_t words = is_direct() ? call_.head_dim / Math::CACHED_PER : steps_;
    const int64_t key_blocks = (count + 15) / 16 * ((words + 15) / 16);
    return heads_ * (4 * key_blocks + (count + Math::PER - 1) / Math::PER);
  }

  // All rows of one kv head against a tile, from the first row that sees any of it.
  void attend_tile(int64_t tile, int64_t head, const int64_t* slots, int64_t count, Ahead& ahead) {
    const int64_t width = call_.num_kv_heads * call_.head_dim, offset = head * call_.head_dim;
    const CacheView<Math> cached{static_cast<const Element*>(call_.keys) + offset,
                                 static_cast<const Element*>(call_.values) + offset,
                                 slots, width, count, call_.head_dim};
    if (is_direct()) {
      attend_group(tile, head, first_row(tile), rows_ - first_row(tile),
                   [&](int n, const float* const* queries, const int64_t* visible,
                       float* const* partials) {
                     ATTEND_CACHED<Math>[n](cached, queries, visible, call_.scale_log2, partials,
                                            ahead);
                   });
      return;
    }
    pack_keys<Math>(cached.keys, slots, width, count, call_.head_dim, scratch_.keys, ahead);
    pack_values<Math>(cached.values, slots, width, count, call_.head_dim, scratch_.values, ahead);
    const TileView packed{scratch_.keys, scratch_.values, steps_, columns_, call_.scale_log2};
    for (int64_t row = first_row(tile); row < rows_;) {
      const int64_t groups = (rows_ - row + Math::ROWS - 1) / Math::ROWS;
      const int64_t size = (rows_ - row + groups - 1) / groups;
      attend_group(tile, head, row, size,
                   [&](int n, const float* const* queries, const int64_t* visible,
                       float* const* partials) {
                     Math::attend_rows(n, packed, queries, visible, partials);
                   });
      row += size;
    }
  }

  int64_t first_row(int64_t tile) const {
    return std::max<int64_t>(0, tile * TILE_KEYS - piece_.first_position) * call_.group;
  }

  // attend(n, queries, visible keys, partials) of rows [row, row + n), then merges what it gives.
  template <class Attend>
  void attend_group(int64_t tile, int64_t head, int64_t row, int64_t n, Attend attend) {
    const float* queries[MAX_ROWS];
    int64_t visible[MAX_ROWS];
    float* partials[MAX_ROWS];
    for (int64_t r = 0; r < n; ++r) {
      const int64_t position = piece_.first_position + (row + r) / call_.group;
      queries[r] = scratch_.queries + row_index(head, row + r) * columns_;
      visible[r] = std::min(TILE_KEYS, position + 1 - tile * TILE_KEYS);
      partials[r] = partial_place(tile, head, row + r, r);
    }
    attend(static_cast<int>(n), queries, visible, partials);
    if (is_shared() || tile == 0) return;
    for (int64_t r = 0; r < n; ++r)
      merge_partial(total(head, row + r), partials[r], columns_, false);
  }

  // The first tile's partial is the total's start.
  float* partial_place(int64_t tile, int64_t head, int64_t row, int64_t r) const {
    if (is_shared()) return shared(tile, head, row);
    return tile == 0 ? total(head, row) : scratch_.partials + r * stride_;
  }

  void finish() {
    Element* out = static_cast<Element*>(call_.out);
    const int64_t heads = call_.num_kv_heads * call_.group;
    for (int64_t head = piece_.first_kv_head; head < piece_.last_kv_head; ++head) {
      for (int64_t row = 0; row < rows_; ++row) {
        const int64_t query = piece_.first_query + row / call_.group;
        const int64_t query_head = head * call_.group + row % call_.group;
        finish_row(total(head, row), out + (query * heads + query_head) * call_.head_dim,
                   call_.head_dim);
      }
    }
  }

  const AttentionCall& call_;
  const AttentionPiece& piece_;
  const int64_t heads_, rows_, steps_, columns_, stride_;
  const Scratch scratch_;
};

template <class Math>
void run_piece(const AttentionCall& call, const AttentionPiece& piece,
               const AttentionPiece* following, bool warm, float* memory) {
  PieceRun<Math>(call, piece, memory).run(following, warm);
}

template <class Math>
void merge_row(const AttentionCall& call, const float* partials, int64_t tile_stride,
               int64_t tiles, int64_t query, int64_t head, float* memory) {
  const int64_t columns = (call.head_dim + 15) / 16 * 16;
  for (int64_t tile = 0; tile < tiles; ++tile)
    merge_partial(memory, partials + tile * tile_stride, columns, tile == 0);
  auto* out = static_cast<typename Math::Element*>(call.out);
  const int64_t heads = call.num_kv_heads * call.group;
  finish_row(memory, out + (query * heads + head) * call.head_dim, call.head_dim);
}

}  // namespace
}  // namespace deeprequest
