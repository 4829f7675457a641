// One rank's place in a segment of shared memory through which the ranks of one host add up.
//
//   segment   | Header, one page | rank 0: slot 0, slot 1 | rank 1: slot 0, slot 1 | ...
//
// A collective is cut into chunks of at most one slot. For each, a rank writes its part into its
// own slot, posts the chunk's number, waits until all others have posted it, and reads theirs. Slots
// alternate: whoever posts chunk n + 1 has read all of chunk n, so slot n % 2 is free at n + 2.

#pragma once

#include <poll.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shm_sum.h"

namespace shm {

inline constexpr std::size_t kTokenBytes = 64;  // the opener's proof that it mapped the right file
inline constexpr std::size_t kHeaderBytes = 4096;
inline constexpr std::size_t kSlots = 2;

// Alone on its cache lines (two, for the neighbour is prefetched), written by one rank.
struct alignas(128) RankLine {
  std::atomic<std::uint64_t> posted;
  std::atomic<std::uint32_t> left;
  std::uint64_t what[kSlots];  // bytes and kind of the chunk in each slot: do the ranks agree?
};

struct Header {
  char token[kTokenBytes];
  alignas(64) std::atomic<std::uint32_t> aborted;
  RankLine ranks[kMaxRanks];
};
static_assert(sizeof(Header) <= kHeaderBytes);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

inline std::size_t segment_bytes(int ranks, std::size_t slot_bytes) {
  return kHeaderBytes + static_cast<std::size_t>(ranks) * kSlots * slot_bytes;
}

class Group {
 public:
  // `watched`: for every rank a descriptor that becomes readable when it dies, -1 for this one.
  // `spins`: turns of busy waiting before the core is left to others. Throws runtime_error.
  Group(int file, int rank, int ranks, std::size_t slot_bytes, const std::vector<int>& watched,
        double timeout_s, int spins);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  // In place. Throws runtime_error when a rank is gone, late, or in another collective.
  template <class T>
  void all_reduce(T* values, std::size_t count);

  // out = every rank's `bytes` of `part`, rank 0 first; throws as all_reduce does.
  void all_gather(const char* part, char* out, std::size_t bytes);

  // Says that this rank posts no more: who still waits for it fails at once.
  void leave();

 private:
  char* slot(int rank, std::uint64_t sequence) const;
  void exchange(const void* part, std::size_t bytes, std::uint64_t kind);
  void wait_for(int peer);
  void wait_slowly(int peer);
  int nap_unless_death(double nap_s);
  bool arrived(int peer) const;
  [[noreturn]] void fail(const std::string& reason);

  Header* header_;
  std::size_t slot_bytes_;
  std::size_t mapped_bytes_;
  int rank_;
  int ranks_;
  int spins_;
  double timeout_s_;
  std::uint64_t sequence_ = 0;
  std::vector<pollfd> watched_;
};

}  // namespace shm
