// Huge pages by madvise, where the system grants them. Owns the mappings; see linear_memory.h.

#include "linear_memory.h"

#include <sys/mman.h>

#include <mutex>
#include <new>

namespace linear {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kShared = std::size_t{64} << 20;  // a mapping that small pieces share
constexpr std::size_t kLine = 64;

std::size_t rounded(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// A mapping whose first byte is the first of a huge page. Untouched pages take no memory.
class Mapping {
 public:
  explicit Mapping(std::size_t bytes) : size_(rounded(bytes, kHugePage) + kHugePage) {
    base_ = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    ::madvise(base_, size_, MADV_HUGEPAGE);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(base_, size_); }

  char* begin() const {
    return reinterpret_cast<char*>(rounded(reinterpret_cast<std::size_t>(base_), kHugePage));
  }

 private:
  void* base_;
  std::size_t size_;
};

std::mutex shared_lock;
std::shared_ptr<Mapping> shared;
std::size_t shared_used = kShared;

}  // namespace

std::shared_ptr<void> huge_memory(std::size_t bytes) {
  bytes = rounded(bytes, kLine);
  if (bytes > kShared / 2) {
    auto own = std::make_shared<Mapping>(bytes);
    return {own, own->begin()};
  }
  const std::lock_guard guard(shared_lock);
  if (shared_used + bytes > kShared) {
    shared = std::make_shared<Mapping>(kShared);
    shared_used = 0;
  }
  char* piece = shared->begin() + shared_used;
  shared_used += bytes;
  return {shared, piece};
}

}  // namespace linear
