#include "train/memory_check.h"

#include <algorithm>
#include <span>
#include <vector>

#include "base/checksum.h"

namespace fathom {

uint64_t state_checksum(ThreadPool& pool, const TrainedState& state) {
  constexpr size_t kBlockBytes = size_t{1} << 20;  // one task's
  std::vector<std::span<const std::byte>> blocks;
  for (std::span<const std::byte> part :
       {std::as_bytes(state.parameters.all()), std::as_bytes(state.average.all()),
        std::as_bytes(
            std::span(static_cast<const char*>(state.first_moment.memory.data()), state.first_moment.memory.size())),
        std::as_bytes(std::span(static_cast<const char*>(state.second_moment.memory.data()),
                                state.second_moment.memory.size()))}) {
    for (; !part.empty(); part = part.subspan(std::min(part.size(), kBlockBytes))) {
      blocks.push_back(part.first(std::min(part.size(), kBlockBytes)));
    }
  }
  std::vector<uint64_t> sums(blocks.size());
  pool.run(static_cast<int64_t>(blocks.size()), [&](int64_t i, int) {
    Xxh3 sum;
    sum.update(blocks[static_cast<size_t>(i)].data(), blocks[static_cast<size_t>(i)].size());
    sums[static_cast<size_t>(i)] = sum.value();
  });
  Xxh3 whole;
  whole.update(sums.data(), sums.size() * sizeof(uint64_t));
  return whole.value();
}

}  // namespace fathom
