// Which instruction sets may be used: what this CPU has, in the groups that files are compiled for.
//
// DEEPREQUEST_CPU_INSTRUCTIONS=avx2 keeps to AVX2 on a CPU that has more: for tests, and where the
// ranks of one model stand on unlike CPUs.
#pragma once

#include <cstdlib>
#include <cstring>

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

inline bool has_avx512() {
  static const bool found = [] {
    const char* limit = std::getenv("DEEPREQUEST_CPU_INSTRUCTIONS");
    return (limit == nullptr || std::strcmp(limit, "avx2") != 0) &&
           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }();
  return found;
}
