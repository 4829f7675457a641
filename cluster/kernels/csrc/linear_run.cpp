// A linear layer over all its tiles: who computes which, and what stays in which cache.
//
// Owns threads and blocking; knows no instructions. Rows are taken in blocks whose row panels all
// threads read from the shared cache; a task is one weight panel times a run of row tiles, with K
// in slices so that the panel stays in the core's own cache while the tiles pass over it.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "linear_kernel.h"

namespace linear {
namespace {

constexpr std::int64_t kBlockRows = 32 * kMaxTileRows;  // rows packed at a time
constexpr std::int64_t kSlicePairs = 1024;              // 128 KiB of a weight panel
constexpr std::int64_t kStreamedPairs = 256;            // 32 KiB, when one tile passes over it
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kLine = 64;                      // bytes of a cache line
constexpr std::int64_t kSerialWork = 1 << 15;           // products below which threads cost more

// Rows in tiles of nearly equal height.
struct Tiling {
  std::int64_t rows, tiles;

  explicit Tiling(std::int64_t rows)
      : rows(rows), tiles((rows + kMaxTileRows - 1) / kMaxTileRows) {}
  std::int64_t begin(std::int64_t tile) const { return rows * tile / tiles; }
};

struct Tiles {
  std::int64_t begin, end;
};

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};

// Memory for the row panels of one caller, kept for its next call.
char* row_panels(std::size_t bytes) {
  static thread_local std::unique_ptr<char, Free> memory;
  static thread_local std::size_t held = 0;
  if (bytes > held) {
    memory.reset();
    held = (bytes + 4095) / 4096 * 4096;
    memory.reset(static_cast<char*>(std::aligned_alloc(64, held)));
  }
  return memory.get();
}

class Block {
 public:
  Block(const Kernel& kernel, const Call& call, int threads)
      : kernel_(kernel), call_(call), tiling_(call.m), pairs_(pairs_of(call.x.k)),
        panels_(panels_of(call.n)),
        memory_(row_panels(call.m * pairs_ * kernel.pair_bytes)) {
    groups_ = panels_ >= kTasksPerThread * threads
                  ? 1
                  : std::min(tiling_.tiles, kTasksPerThread * threads / panels_ + 1);
  }

  // Share `part` of `parts` of the packing: the same pairs of every row.
  void pack(int part, int parts) const {
    const std::int64_t first = pairs_ * part / parts, last = pairs_ * (part + 1) / parts;
    for (std::int64_t tile = 0; tile < tiling_.tiles; ++tile) {
      const std::int64_t row = tiling_.begin(tile);
      const Rows x{call_.x.data + row * call_.x.stride, call_.x.stride, call_.x.k};
      kernel_.pack_rows(x, tiling_.begin(tile + 1) - row, first, last, row_panel(row));
    }
  }

  // Takes tasks until none is left; the next one is known early, so that its weights are fetched.
  void work() {
    std::int64_t task = next_++;
    while (task < panels_ * groups_) {
      const std::int64_t next = next_++;
      compute(task, next < panels_ * groups_ ? next : task);
      task = next;
    }
  }

 private:
  void compute(std::int64_t task, std::int64_t next) const {
    const std::int64_t panel = task / groups_, group = task % groups_;
    const Tiles tiles{tiling_.tiles * group / groups_, tiling_.tiles * (group + 1) / groups_};
    alignas(64) float sums[kBlockRows * kPanel];
    const std::int64_t longest = tiles.end - tiles.begin > 1 ? kSlicePairs : kStreamedPairs;
    const std::int64_t slices = (pairs_ + longest - 1) / longest;
    for (std::int64_t slice = 0; slice < slices; ++slice) {
      const std::int64_t pair = pairs_ * slice / slices, end = pairs_ * (slice + 1) / slices;
      const bf16* after = slice + 1 < slices ? weights(panel, end) : weights(next / groups_, 0);
      accumulate(tiles, weights(panel, pair), pair, end - pair, sums, after);
    }
    finish(panel, tiling_.begin(tiles.begin), tiling_.begin(tiles.end), sums);
  }

  const bf16* weights(std::int64_t panel, std::int64_t pair) const {
    return call_.packed + (panel * pairs_ + pair) * kPairElements;
  }

  char* row_panel(std::int64_t row) const { return memory_ + row * pairs_ * kernel_.pair_bytes; }

  void accumulate(Tiles tiles, const bf16* weight, std::int64_t pair, std::int64_t pairs,
                  float* sums, const bf16* after) const {
    const std::int64_t top = tiling_.begin(tiles.begin);
    for (std::int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
      const std::int64_t row = tiling_.begin(tile), rows = tiling_.begin(tile + 1) - row;
      kernel_.accumulate(row_panel(row) + pair * rows * kernel_.pair_bytes, weight, pairs, rows,
                         sums + (row - top) * kPanel, pair == 0,
                         ahead(tile - tiles.begin, tiles.end - tiles.begin, weight, pairs, after));
    }
  }

  // A tile alone fetches all that comes after, the first two of many half of it each.
  static Ahead ahead(std::int64_t tile, std::int64_t tiles, const bf16* weight,
                     std::int64_t pairs, const bf16* after) {
    const auto* next = reinterpret_cast<const char*>(after);
    if (tiles == 1) return {next, 2 * kLine, kLine};
    if (tile < 2) return {next + tile * pairs * kLine, kLine, 0};
    return {reinterpret_cast<const char*>(weight), 0, 0};
  }

  void finish(std::int64_t panel, std::int64_t row, std::int64_t end, const float* sums) const {
    const std::int64_t column = panel * kPanel;
    const std::int64_t size = call_.out.wide ? sizeof(float) : sizeof(bf16);
    char* out = static_cast<char*>(call_.out.data) + (row * call_.out.stride + column) * size;
    kernel_.finish(sums, end - row, std::min(kPanel, call_.n - column),
                   call_.epilogue.at(row, column), {out, call_.out.stride, call_.out.wide});
  }

  const Kernel& kernel_;
  const Call& call_;
  Tiling tiling_;
  std::int64_t pairs_, panels_, groups_;
  char* memory_;
  alignas(kLine) std::atomic<std::int64_t> next_{0};
};

void run_block(const Kernel& kernel, const Call& call, int threads) {
  Block block(kernel, call, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    block.pack(omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
    block.work();
  }
}

}  // namespace

const std::vector<const Kernel*>& variants() {
  static const std::vector<const Kernel*> found = [] {
    std::vector<const Kernel*> kernels;
    for (const Kernel* kernel : {&kAvx512Bf16, &kAvx512}) {
      if (kernel->supported()) kernels.push_back(kernel);
    }
    return kernels;
  }();
  return found;
}

void run(const Kernel& kernel, const Call& call, int threads) {
  const std::int64_t size = call.out.wide ? sizeof(float) : sizeof(bf16);
  if (call.m * call.n * call.x.k < kSerialWork) threads = 1;
  for (std::int64_t row = 0; row < call.m; row += kBlockRows) {
    Call block = call;
    block.m = std::min(kBlockRows, call.m - row);
    block.x.data += row * call.x.stride;
    block.epilogue = call.epilogue.at(row, 0);
    block.out.data = static_cast<char*>(call.out.data) + row * call.out.stride * size;
    run_block(kernel, block, threads);
  }
}

}  // namespace linear
