// Reading ahead: the lines of the tile that comes next are asked for while this one is computed.
//
// A request's blocks lie anywhere, so the hardware cannot guess them. Included only by files that
// have chosen their lanes.
#pragma once

#include <algorithm>

#include "attention.h"

namespace deeprequest {
namespace {

constexpr int64_t LINE_BYTES = 64;

// Where the keys of a tile lie, in rows of the cache; places past the last visible key repeat it,
// so that nothing outside the request is ever read. Returns the number of visible keys.
inline int64_t tile_slots(const AttentionPiece& piece, int64_t tile, int64_t slots[TILE_KEYS]) {
  const int64_t first = tile * TILE_KEYS;
  const int64_t count =
      std::min(TILE_KEYS, piece.first_position + piece.num_queries - first);
  const int64_t size = int64_t{1} << piece.block_shift;
  int64_t key = 0;
  while (key < count) {
    const int64_t position = first + key;
    const int64_t offset = position & (size - 1);
    const int64_t block = piece.blocks[position >> piece.block_shift];
    const int64_t stop = std::min(count, key + size - offset);
    for (int64_t at = (block << piece.block_shift) + offset; key < stop; ++key, ++at)
      slots[key] = at;
  }
  const int64_t last = slots[count - 1];
  for (const int64_t end = (count + 31) / 32 * 32; key < end; ++key) slots[key] = last;
  return count;
}

// Walks over the lines of a tile: a span of keys, the same span of values, the next slot ...
class Ahead {
 public:
  Ahead() = default;

  // `steps`: how often `step` is going to be called.
  Ahead(const AttentionCall& call, const AttentionPiece& piece, int64_t element_bytes,
        const int64_t* slots, int64_t count, int64_t steps)
      : slots_(slots), left_(2 * count) {
    const int64_t head_bytes = call.head_dim * element_bytes;
    const int64_t offset = piece.first_kv_head * head_bytes;
    spans_[0] = static_cast<const char*>(call.keys) + offset;
    spans_[1] = static_cast<const char*>(call.values) + offset;
    slot_bytes_ = call.num_kv_heads * head_bytes;
    span_bytes_ = (piece.last_kv_head - piece.first_kv_head) * head_bytes;
    const int64_t lines = left_ * ((span_bytes_ + LINE_BYTES - 1) / LINE_BYTES);
    lines_per_step_ = steps > 0 ? (lines + steps - 1) / steps : lines;
    enter();
  }

  void step() {
    for (int64_t i = 0; i < lines_per_step_ && left_ > 0; ++i) {
      _mm_prefetch(at_, _MM_HINT_T1);
      at_ += LINE_BYTES;
      if (at_ >= end_) {
        --left_;
        enter();
      }
    }
  }

 private:
  void enter() {
    if (left_ <= 0) return;
    at_ = spans_[left_ & 1] + *slots_ * slot_bytes_;
    end_ = at_ + span_bytes_;
    slots_ += left_ & 1;
  }

  const char* spans_[2] = {};
  const int64_t* slots_ = nullptr;
  const char* at_ = nullptr;
  const char* end_ = nullptr;
  int64_t left_ = 0;  // spans
  int64_t slot_bytes_ = 0, span_bytes_ = 0, lines_per_step_ = 0;
};

}  // namespace
}  // namespace deeprequest
