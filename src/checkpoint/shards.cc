#include "checkpoint/shards.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace fathom {

std::vector<size_t> cut_shards(std::span<const StoredSize> tensors, int64_t max_bytes) {
  std::vector<size_t> shards{0};
  int64_t bytes = 0;
  for (const StoredSize& tensor : tensors) {
    if (shards.back() > 0 && bytes + tensor.bytes > max_bytes) {
      shards.push_back(0);
      bytes = 0;
    }
    bytes += tensor.bytes;
    ++shards.back();
  }
  return shards;
}

std::vector<std::string> shard_names(size_t n) {
  if (n == 1) return {"model.safetensors"};
  std::vector<std::string> names;
  for (size_t s = 1; s <= n; ++s) names.push_back(fmt::format("model-{:05}-of-{:05}.safetensors", s, n));
  return names;
}

std::string index_json(std::span<const StoredSize> tensors, std::span<const size_t> shards) {
  if (shards.size() == 1) return "";
  const std::vector<std::string> names = shard_names(shards.size());
  nlohmann::json index;
  int64_t total = 0;
  size_t next = 0;
  for (size_t s = 0; s < shards.size(); ++s) {
    for (size_t i = 0; i < shards[s]; ++i, ++next) {
      index["weight_map"][tensors[next].name] = names[s];
      total += tensors[next].bytes;
    }
  }
  index["metadata"]["total_size"] = total;
  return index.dump(2) + "\n";
}

}  // namespace fathom
