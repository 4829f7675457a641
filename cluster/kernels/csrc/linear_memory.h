// Memory for weights on huge pages: fewer address translations, more of the read bandwidth.

#pragma once

#include <cstddef>
#include <memory>

namespace linear {

// `bytes` of zeros aligned to a cache line; freed when the last copy of the pointer is gone. Small
// pieces share mappings, so that many small weights fill huge pages together.
std::shared_ptr<void> huge_memory(std::size_t bytes);

}  // namespace linear
