// Cutting a step's attention into pieces.
#include "attention_schedule.h"

#include <algorithm>

namespace deeprequest {
namespace {

// Rows of a kv head that share a packed tile: packing costs as much as about four rows.
constexpr int64_t PIECE_ROWS = 192;
// Up to so many rows a piece takes all kv heads, whose keys lie side by side in memory.
constexpr int64_t FEW_ROWS = 32;
// Cost of touching a key, in rows of arithmetic.
constexpr int64_t KEY_COST = 8;
// Pieces per thread, so that the last one to finish is not late.
constexpr int64_t PIECES_PER_THREAD = 4;
// Cost (keys * kv heads * rows) that is not worth a second thread.
constexpr int64_t SMALL_COST = 4096;

struct Cut {
  AttentionPiece piece;
  int64_t cost;
};

int64_t cost_of(const AttentionPiece& piece, int64_t group) {
  const int64_t rows = piece.num_queries * group;
  const int64_t end = piece.first_position + piece.num_queries;
  const int64_t first = piece.first_tile * TILE_KEYS;
  const int64_t keys = std::min(end, piece.last_tile * TILE_KEYS) - first;
  return keys * (piece.last_kv_head - piece.first_kv_head) * (KEY_COST + rows);
}

int32_t share(int64_t total, int64_t part, int64_t parts) {
  return static_cast<int32_t>(total * part / parts);
}

class Cutter {
 public:
  Cutter(const AttentionBatch& batch, const HeadShape& shape, int threads)
      : batch_(batch), shape_(shape), threads_(threads) {}

  AttentionSchedule cut() {
    for (int64_t request = 0; request < batch_.num_requests; ++request) add_request(request);
    int64_t total = 0;
    for (const AttentionPiece& piece : whole_) total += cost_of(piece, shape_.group);
    if (total < SMALL_COST * threads_) threads_ = 1;
    const int64_t target = std::max(SMALL_COST, total / (threads_ * PIECES_PER_THREAD));
    for (const AttentionPiece& piece : whole_) {
      if (threads_ == 1) {
        keep(piece);
      } else {
        split(piece, (cost_of(piece, shape_.group) + target - 1) / target);
      }
    }
    return ordered();
  }

 private:
  // Blocks of queries; with many rows, one piece per kv head.
  void add_request(int64_t request) {
    const int32_t begin = batch_.firsts[request], end = batch_.borders[request + 1];
    const int64_t per_piece = std::max<int64_t>(1, PIECE_ROWS / shape_.group);
    for (int64_t query = begin; query < end; query += per_piece) {
      AttentionPiece piece{};
      piece.blocks = batch_.blocks + request * batch_.block_columns;
      piece.block_shift = batch_.block_shift;
      piece.first_query = static_cast<int32_t>(query);
      piece.num_queries = static_cast<int32_t>(std::min<int64_t>(per_piece, end - query));
      piece.first_position = static_cast<int32_t>(batch_.lengths[request] - (end - query));
      const int64_t keys = piece.first_position + piece.num_queries;
      piece.last_tile = static_cast<int32_t>((keys + TILE_KEYS - 1) / TILE_KEYS);
      piece.last_kv_head = static_cast<int32_t>(shape_.num_kv_heads);
      piece.first_partial = -1;
      schedule_.most_rows = std::max(schedule_.most_rows, piece.num_queries * shape_.group);
      add_heads(piece);
    }
  }

  void add_heads(AttentionPiece piece) {
    if (piece.num_queries * shape_.group <= FEW_ROWS) {
      whole_.push_back(piece);
      return;
    }
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      piece.first_kv_head = static_cast<int32_t>(head);
      piece.last_kv_head = static_cast<int32_t>(head + 1);
      whole_.push_back(piece);
    }
  }

  void keep(const AttentionPiece& piece) {
    cuts_.push_back({piece, cost_of(piece, shape_.group)});
  }

  // By tiles where there are enough of them: that keeps memory in order; else by heads too.
  void split(const AttentionPiece& piece, int64_t parts) {
    const int64_t tiles = piece.last_tile;
    const int64_t heads = piece.last_kv_head - piece.first_kv_head;
    if (parts > tiles / 2 && heads > 1) {
      const int64_t head_parts = std::min(parts, heads);
      for (int64_t part = 0; part < head_parts; ++part) {
        AttentionPiece narrow = piece;
        narrow.first_kv_head = piece.first_kv_head + share(heads, part, head_parts);
        narrow.last_kv_head = piece.first_kv_head + share(heads, part + 1, head_parts);
        split_tiles(narrow, (parts + head_parts - 1) / head_parts);
      }
      return;
    }
    split_tiles(piece, parts);
  }

  void split_tiles(AttentionPiece piece, int64_t parts) {
    const int64_t tiles = piece.last_tile;
    parts = std::min(parts, tiles);
    if (parts <= 1) {
      keep(piece);
      return;
    }
    piece.first_partial = partials_of(piece);
    for (int64_t part = 0; part < parts; ++part) {
      piece.first_tile = share(tiles, part, parts);
      piece.last_tile = share(tiles, part + 1, parts);
      keep(piece);
    }
  }

  // Pieces of the same queries (other heads) share one block of partials.
  int64_t partials_of(const AttentionPiece& piece) {
    if (!schedule_.merges.empty() && schedule_.merges.back().first_query == piece.first_query)
      return schedule_.merges.back().first_partial;
    const int64_t first = schedule_.partial_floats;
    schedule_.partial_floats += piece.last_tile * shape_.num_kv_heads * piece.num_queries *
                                shape_.group * partial_stride(shape_.head_dim);
    schedule_.merges.push_back(
        {piece.first_query, piece.num_queries, piece.first_position, first});
    return first;
  }

  AttentionSchedule ordered() {
    std::stable_sort(cuts_.begin(), cuts_.end(),
                     [](const Cut& a, const Cut& b) { return a.cost > b.cost; });
    for (const Cut& cut : cuts_) schedule_.pieces.push_back(cut.piece);
    schedule_.threads = threads_;
    return std::move(schedule_);
  }

  const AttentionBatch& batch_;
  const HeadShape& shape_;
  int threads_;
  AttentionSchedule schedule_;
  std::vector<AttentionPiece> whole_;
  std::vector<Cut> cuts_;
};

}  // namespace

AttentionSchedule cut_attention(const AttentionBatch& batch, const HeadShape& shape, int threads) {
  return Cutter(batch, shape, threads).cut();
}

}  // namespace deeprequest
