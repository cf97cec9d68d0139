#include "train/memory_check.h"

#include <algorithm>
#include <span>
#include <vector>

#include "base/checksum.h"

namespace fathom {
namespace {

using Bytes = std::span<const std::byte>;

Bytes bytes_of(const Moment& moment) {
  return {static_cast<const std::byte*>(moment.memory.data()), moment.memory.size()};
}

uint64_t checksum(ThreadPool& pool, const std::vector<Bytes>& parts) {
  constexpr size_t kBlockBytes = size_t{1} << 20;  // one task's
  std::vector<Bytes> blocks;
  for (Bytes part : parts) {
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

}  // namespace

uint64_t state_checksum(ThreadPool& pool, const TrainedState& state) {
  return checksum(pool, {std::as_bytes(state.parameters.all()), std::as_bytes(state.average.all()),
                         bytes_of(state.first_moment), bytes_of(state.second_moment)});
}

uint64_t state_checksum(ThreadPool& pool, const RankState& state) {
  std::vector<Bytes> parts;
  for (const Stage& stage : state.stages) parts.push_back(std::as_bytes(stage.parameters.all()));
  for (const Region& region : state.regions) {
    parts.push_back(bytes_of(region.first_moment));
    parts.push_back(bytes_of(region.second_moment));
    parts.push_back(std::as_bytes(std::span(region.average)));
  }
  for (const std::vector<float>& biases : state.bias_averages) parts.push_back(std::as_bytes(std::span(biases)));
  return checksum(pool, parts);
}

}  // namespace fathom
