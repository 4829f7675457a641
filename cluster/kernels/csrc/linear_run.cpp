// A linear layer over all its tiles: who computes which, and what stays in which cache.
//
// Owns threads and blocking; knows no instructions. Rows are taken in blocks whose row panels all
// threads read from the shared cache. Where one tile holds all rows, a task is a run of weight panels
// that are read once, as one stream. Else it is one weight panel times a run of row tiles, with K in
// slices so that the panel stays in the core's own cache while the tiles pass over it.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "instructions.h"
#include "linear_kernel.h"

namespace linear {
namespace {

constexpr std::int64_t kBlockRows = 12 * kMaxTileRows;  // rows packed at a time
constexpr std::int64_t kStreamedAhead = 8192;           // bytes that a stream is read ahead
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kLine = 64;                      // bytes of a cache line
constexpr std::int64_t kSerialWork = 1 << 15;           // products below which threads cost more

// Rows in tiles of nearly equal height.
struct Tiling {
  std::int64_t rows, tiles;

  Tiling(std::int64_t rows, std::int64_t tile_rows)
      : rows(rows), tiles((rows + tile_rows - 1) / tile_rows) {}
  std::int64_t begin(std::int64_t tile) const { return rows * tile / tiles; }
};

struct Tiles {
  std::int64_t begin, end;
};

struct Slice {
  std::int64_t pair, pairs;
  bool last;
};

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};

// Where part `part` of `parts` of the pairs begins: at a whole step.
std::int64_t cut(std::int64_t pairs, std::int64_t part, std::int64_t parts) {
  return part == parts ? pairs : pairs * part / parts / kPairStep * kPairStep;
}

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
      : kernel_(kernel), call_(call), tiling_(call.m, kernel.tile_rows),
        pairs_(pairs_of(call.x.k)), whole_((pairs_ + kPairStep - 1) / kPairStep * kPairStep),
        panels_(panels_of(call.n)),
        memory_(row_panels(call.m * whole_ * kernel.pair_bytes)) {
    groups_ = panels_ >= kTasksPerThread * threads
                  ? 1
                  : std::min(tiling_.tiles, kTasksPerThread * threads / panels_ + 1);
  }

  // Share `part` of `parts` of the packing: the same pairs of every row.
  void pack(int part, int parts) const {
    const std::int64_t first = cut(pairs_, part, parts), last = cut(pairs_, part + 1, parts);
    for (std::int64_t tile = 0; tile < tiling_.tiles; ++tile) {
      const std::int64_t row = tiling_.begin(tile);
      const Rows x{call_.x.data + row * call_.x.stride, call_.x.stride, call_.x.k};
      kernel_.pack_rows(x, tiling_.begin(tile + 1) - row, first, last, row_panel(row));
    }
  }

  // Takes tasks until none is left.
  void work() {
    if (tiling_.tiles == 1) {
      stream_all();
    } else {
      multiply_all();
    }
    if (kernel_.leave != nullptr) kernel_.leave();
  }

 private:
  void stream_all() {
    const std::int64_t runs = std::min(panels_, kTasksPerThread * omp_get_num_threads());
    for (std::int64_t run = next_++; run < runs; run = next_++) {
      const std::int64_t end = panels_ * (run + 1) / runs;
      for (std::int64_t panel = panels_ * run / runs; panel < end; ++panel) stream(panel);
    }
  }

  // One panel times all rows; what lies behind it in memory is what comes next.
  void stream(std::int64_t panel) const {
    alignas(64) float sums[kMaxTileRows * kPanel];
    const bf16* weight = weights(panel, 0);
    const Ahead ahead{reinterpret_cast<const char*>(weight) + kStreamedAhead, 2 * kLine, kLine};
    kernel_.accumulate(memory_, weight, pairs_, call_.m, sums, true, ahead);
    finish(panel, 0, call_.m, sums);
  }

  // The next task is known early, so that its weights are fetched.
  void multiply_all() {
    std::int64_t task = next_++;
    while (task < panels_ * groups_) {
      const std::int64_t next = next_++;
      compute(task, next < panels_ * groups_ ? next : task);
      task = next;
    }
  }

  void compute(std::int64_t task, std::int64_t next) const {
    const std::int64_t panel = task / groups_, group = task % groups_;
    const Tiles tiles{tiling_.tiles * group / groups_, tiling_.tiles * (group + 1) / groups_};
    alignas(64) float sums[kBlockRows * kPanel];
    const std::int64_t slices = (pairs_ + kernel_.slice_pairs - 1) / kernel_.slice_pairs;
    for (std::int64_t slice = 0; slice < slices; ++slice) {
      const std::int64_t pair = cut(pairs_, slice, slices), end = cut(pairs_, slice + 1, slices);
      const bool last = slice + 1 == slices;
      const bf16* after = last ? weights(next / groups_, 0) : weights(panel, end);
      pass(tiles, panel, {pair, end - pair, last}, sums, after);
    }
  }

  const bf16* weights(std::int64_t panel, std::int64_t pair) const {
    return call_.packed + (panel * pairs_ + pair) * kPairElements;
  }

  char* row_panel(std::int64_t row) const { return memory_ + row * whole_ * kernel_.pair_bytes; }

  // Tiles pass over a slice of a weight panel; what the last slice completes is written out.
  void pass(Tiles tiles, std::int64_t panel, Slice slice, float* sums, const bf16* after) const {
    const std::int64_t top = tiling_.begin(tiles.begin);
    const bool whole = slice.pair == 0 && slice.last;  // then no tile's sums have to be kept
    const bf16* weight = weights(panel, slice.pair);
    for (std::int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
      const std::int64_t row = tiling_.begin(tile), rows = tiling_.begin(tile + 1) - row;
      float* own = sums + (whole ? 0 : (row - top) * kPanel);
      kernel_.accumulate(row_panel(row) + slice.pair * rows * kernel_.pair_bytes, weight,
                         slice.pairs, rows, own, slice.pair == 0,
                         ahead(tile - tiles.begin, tiles.end - tiles.begin, weight, slice.pairs, after));
      if (slice.last) finish(panel, row, rows, own);
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

  void finish(std::int64_t panel, std::int64_t row, std::int64_t rows, const float* sums) const {
    const std::int64_t column = panel * kPanel;
    const std::int64_t size = call_.out.wide ? sizeof(float) : sizeof(bf16);
    char* out = static_cast<char*>(call_.out.data) + (row * call_.out.stride + column) * size;
    kernel_.finish(sums, rows, std::min(kPanel, call_.n - column), call_.epilogue.at(row, column),
                   {out, call_.out.stride, call_.out.wide});
  }

  const Kernel& kernel_;
  const Call& call_;
  Tiling tiling_;
  std::int64_t pairs_, whole_, panels_, groups_;  // whole_: pairs_ in whole steps
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

std::vector<const Kernel*> supported(std::initializer_list<const Kernel*> kernels) {
  std::vector<const Kernel*> found;
  for (const Kernel* kernel : kernels) {
    if (kernel->supported()) found.push_back(kernel);
  }
  return found;
}

}  // namespace

const std::vector<const Kernel*>& variants() {
  static const auto found = has_avx512() ? supported({&kAmxBf16, &kAvx512Bf16, &kAvx512})
                                         : supported({&kAvx2});
  return found;
}

const std::vector<const Kernel*>& int8_variants() {
  static const auto found = supported({&kAmxInt8, &kAvx512Vnni, &kAvx2Int8});
  return found;
}

const std::vector<const Kernel*>& float32_variants() {
  static const auto found = supported({has_avx512() ? &kAvx512Wide : &kAvx2Wide});
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
