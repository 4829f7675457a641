// Owns the waiting: busy at first, then asleep in short naps, never beyond the deadline and never for
// the dead. It never yields: whoever is yielded to, at however low a priority, keeps the core until
// the kernel's next tick, while a nap's end takes the core back at once.

#include "shm_group.h"

#include <immintrin.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>

namespace shm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned long kTimerSlackNs = 1'000;  // the kernel's own is 50,000
constexpr double kFirstNapS = 5e-6;
constexpr double kLongestNapS = 1e-3;
constexpr double kNapOfWait = 0.125;  // what a wait may be overslept by

enum Kind : std::uint64_t { kReduceFloat = 1, kReduceBfloat16 = 2, kGather = 3 };
constexpr std::uint64_t kind_of(const float*) { return kReduceFloat; }
constexpr std::uint64_t kind_of(const std::uint16_t*) { return kReduceBfloat16; }

}  // namespace

Group::Group(int file, int rank, int ranks, std::size_t slot_bytes, const std::vector<int>& watched,
             double timeout_s, int spins)
    : slot_bytes_(slot_bytes),
      mapped_bytes_(segment_bytes(ranks, slot_bytes)),
      rank_(rank),
      ranks_(ranks),
      spins_(spins),
      timeout_s_(timeout_s) {
  if (ranks < 2 || ranks > kMaxRanks || rank < 0 || rank >= ranks || slot_bytes % 64 != 0 ||
      watched.size() != static_cast<std::size_t>(ranks)) {
    throw std::runtime_error("no such group");
  }
  void* memory = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) {
    throw std::runtime_error(std::string("shared memory cannot be mapped: ") + strerror(errno));
  }
  header_ = static_cast<Header*>(memory);
  for (int descriptor : watched) watched_.push_back({descriptor, POLLIN, 0});
  prctl(PR_SET_TIMERSLACK, kTimerSlackNs);  // of the thread that made the group, which is to wait
}

Group::~Group() { munmap(header_, mapped_bytes_); }

void Group::leave() { header_->ranks[rank_].left.store(1, std::memory_order_release); }

char* Group::slot(int rank, std::uint64_t sequence) const {
  const std::size_t number = static_cast<std::size_t>(rank) * kSlots + sequence % kSlots;
  return reinterpret_cast<char*>(header_) + kHeaderBytes + number * slot_bytes_;
}

template <class T>
void Group::all_reduce(T* values, std::size_t count) {
  const T* parts[kMaxRanks];
  while (count > 0) {
    const std::size_t length = std::min(count, slot_bytes_ / sizeof(T));
    exchange(values, length * sizeof(T), kind_of(values));
    for (int rank = 0; rank < ranks_; ++rank) {
      parts[rank] = rank == rank_ ? values : reinterpret_cast<const T*>(slot(rank, sequence_));
    }
    sum_ranks(parts, ranks_, values, length);
    values += length;
    count -= length;
  }
}

template void Group::all_reduce(float*, std::size_t);
template void Group::all_reduce(std::uint16_t*, std::size_t);

void Group::all_gather(const char* part, char* out, std::size_t bytes) {
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t length = std::min(bytes - done, slot_bytes_);
    exchange(part + done, length, kGather);
    for (int rank = 0; rank < ranks_; ++rank) {
      const char* from = rank == rank_ ? part + done : slot(rank, sequence_);
      std::memcpy(out + rank * bytes + done, from, length);
    }
    done += length;
  }
}

void Group::exchange(const void* part, std::size_t bytes, std::uint64_t kind) {
  RankLine& mine = header_->ranks[rank_];
  if (mine.left.load(std::memory_order_relaxed) != 0) fail("this rank has left");
  if (header_->aborted.load(std::memory_order_acquire) != 0) fail("the group has ended");
  ++sequence_;
  std::memcpy(slot(rank_, sequence_), part, bytes);
  mine.what[sequence_ % kSlots] = bytes << 2 | kind;
  mine.posted.store(sequence_, std::memory_order_release);
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer == rank_) continue;
    wait_for(peer);
    if (header_->ranks[peer].what[sequence_ % kSlots] != mine.what[sequence_ % kSlots]) {
      fail("rank " + std::to_string(peer) + " is in another collective");
    }
  }
}

bool Group::arrived(int peer) const {
  return header_->ranks[peer].posted.load(std::memory_order_acquire) >= sequence_;
}

void Group::wait_for(int peer) {
  for (int spin = 0; spin < spins_; ++spin) {
    if (arrived(peer)) return;
    _mm_pause();
  }
  wait_slowly(peer);
}

void Group::wait_slowly(int peer) {
  const auto start = Clock::now();
  double waited_s = 0;
  while (!arrived(peer)) {
    const int dead = nap_unless_death(std::clamp(kNapOfWait * waited_s, kFirstNapS, kLongestNapS));
    const bool left = header_->ranks[peer].left.load(std::memory_order_acquire) != 0;
    waited_s = std::chrono::duration<double>(Clock::now() - start).count();
    if (dead >= 0) fail("rank " + std::to_string(dead) + " is gone");
    if (header_->aborted.load(std::memory_order_acquire) != 0) fail("another rank gave up");
    if (left && !arrived(peer)) fail("rank " + std::to_string(peer) + " has left");
    if (waited_s > timeout_s_) fail("rank " + std::to_string(peer) + " did not come in time");
  }
}

// A rank that died before it posted the current chunk, or -1. One that died afterwards has done all
// that was asked of it here; it counts as having left.
int Group::nap_unless_death(double nap_s) {
  const timespec longest{0, static_cast<long>(nap_s * 1e9)};
  if (ppoll(watched_.data(), watched_.size(), &longest, nullptr) <= 0) return -1;
  for (int rank = 0; rank < ranks_; ++rank) {
    if (watched_[rank].revents == 0) continue;
    if (!arrived(rank)) return rank;
    header_->ranks[rank].left.store(1, std::memory_order_release);
    watched_[rank].fd = -1;
  }
  return -1;
}

void Group::fail(const std::string& reason) {
  header_->aborted.store(1, std::memory_order_release);
  throw std::runtime_error("collective " + std::to_string(sequence_) + ": " + reason);
}

}  // namespace shm
