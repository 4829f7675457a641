// Owns the arithmetic of an all-reduce. Compiled for several instruction sets; the loader of the
// shared library picks one. All give the same bits: sums are elementwise and never fused.

#include "shm_sum.h"

#include <algorithm>
#include <cstring>

#define FOR_EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))

namespace shm {
namespace {

constexpr std::size_t kBlock = 512;  // elements summed at a time: what 16 ranks keep in 32 KiB

inline float widen(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline std::uint16_t narrow(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

FOR_EACH_ISA void sum_two(const float* a, const float* b, float* out, std::size_t count) {
#pragma GCC ivdep
  for (std::size_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

FOR_EACH_ISA void sum_two(const std::uint16_t* a, const std::uint16_t* b, std::uint16_t* out,
                          std::size_t count) {
#pragma GCC ivdep
  for (std::size_t i = 0; i < count; ++i) out[i] = narrow(widen(a[i]) + widen(b[i]));
}

FOR_EACH_ISA void widen_all(const std::uint16_t* from, float* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}

FOR_EACH_ISA void narrow_all(const float* from, std::uint16_t* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i] = narrow(from[i]);
}

void load(const float* from, float* to, std::size_t count) {
  std::memcpy(to, from, count * sizeof(float));
}
void load(const std::uint16_t* from, float* to, std::size_t count) { widen_all(from, to, count); }

void store(const float* from, float* to, std::size_t count) {
  std::memcpy(to, from, count * sizeof(float));
}
void store(const float* from, std::uint16_t* to, std::size_t count) { narrow_all(from, to, count); }

template <class T>
void sum_tree(const T* const* parts, int ranks, T* out, std::size_t count) {
  alignas(64) float sums[kMaxRanks][kBlock];
  for (std::size_t start = 0; start < count; start += kBlock) {
    const std::size_t length = std::min(kBlock, count - start);
    for (int rank = 0; rank < ranks; ++rank) load(parts[rank] + start, sums[rank], length);
    for (int step = 1; step < ranks; step *= 2) {
      for (int rank = 0; rank + step < ranks; rank += 2 * step) {
        sum_two(sums[rank], sums[rank + step], sums[rank], length);
      }
    }
    store(sums[0], out + start, length);
  }
}

template <class T>
void sum_any(const T* const* parts, int ranks, T* out, std::size_t count) {
  if (ranks == 2) return sum_two(parts[0], parts[1], out, count);
  sum_tree(parts, ranks, out, count);
}

}  // namespace

void sum_ranks(const float* const* parts, int ranks, float* out, std::size_t count) {
  sum_any(parts, ranks, out, count);
}

void sum_ranks(const std::uint16_t* const* parts, int ranks, std::uint16_t* out,
               std::size_t count) {
  sum_any(parts, ranks, out, count);
}

}  // namespace shm
