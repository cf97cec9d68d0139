// How the weights of a Hugging Face directory are spread over files.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace fathom {

inline constexpr const char* kIndexName = "model.safetensors.index.json";
inline constexpr int64_t kMaxShardBytes = int64_t{5} << 30;

struct StoredSize {
  std::string name;
  int64_t bytes;
};

// Consecutive tensors of at most max_bytes together, as counts; one that is larger stands alone.
std::vector<size_t> cut_shards(std::span<const StoredSize> tensors, int64_t max_bytes);

// "model.safetensors", or "model-00001-of-00003.safetensors" and so on.
std::vector<std::string> shard_names(size_t n);

// What says which tensor is in which shard; empty for one file.
std::string index_json(std::span<const StoredSize> tensors, std::span<const size_t> shards);

}  // namespace fathom
