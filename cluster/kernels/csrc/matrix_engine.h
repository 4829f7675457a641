// The matrix engine of the CPU (Intel AMX) as the kernels share it: permission, registers, memory.
//
// Included only by files that have chosen their target by pragma; see linear_amx.cpp and
// attention_amx.cpp for what stands in which register.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "instructions.h"

namespace {

constexpr std::int64_t kEngineRows = 16;   // of an operand
constexpr std::int64_t kEngineBytes = 64;  // of an operand's row

struct alignas(64) EngineConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// GCC 12 does not know that the engine's instructions read memory: what they are about to read must
// be told to be in use.
inline void written() { asm volatile("" ::: "memory"); }

// Sets the heights of the eight registers, all 64 bytes wide.
inline void configure_engine(const std::uint8_t (&heights)[8]) {
  EngineConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = heights[tile];
    config.row_bytes[tile] = heights[tile] > 0 ? kEngineBytes : 0;
  }
  written();
  _tile_loadconfig(&config);
}

// Whether the CPU has the engine and the system lets this process use it: its registers are large,
// so Linux wants to be asked (arch_prctl, ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA).
inline bool engine_supported() {
  static const bool found = [] {
    constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22, kInt8 = 1u << 25;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    if ((d & (kTile | kBf16 | kInt8)) != (kTile | kBf16 | kInt8)) return false;
    return has_avx512() && __builtin_cpu_supports("avx512bf16") &&
           ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return found;
}

}  // namespace
