// A dataset of tokens: the input is a dataset.json and, behind a zero byte, a shard. The json gets the checksum that
// its end has, and the shard the one that the json names, so that changes are not all refused for these.
//
// The laws:
// 1. A dataset.json is refused with one line, or its counts add up, its ids fit their width, and written again it is
// read
//    as the same.
// 2. A shard is refused with one line, or holds the number of ids that it should have, all of the vocabulary.
#include <xxhash.h>

#include <cstring>

#include "base/error.h"
#include "text/token_shards.h"

namespace fathom {
namespace {

std::string sealed(std::string_view json) {
  const std::string_view body = json.substr(0, json.find_last_not_of(" \n}") + 1);
  return fmt::format("{},\n \"xxh3\": \"{:016x}\"\n}}\n", body, XXH3_64bits(body.data(), body.size()));
}

void check_info(const DatasetInfo& info) {
  int64_t sum = 0;
  for (const TokenShard& shard : info.shards) {
    FATHOM_CHECK(shard.n_tokens > 0);
    sum += shard.n_tokens;
  }
  FATHOM_CHECK(sum == info.n_tokens && info.n_tokens > 0);
  FATHOM_CHECK(info.token_bytes == 4 || (info.token_bytes == 2 && info.vocab_size <= 65536));
  FATHOM_CHECK(info.eos_id >= -1 && info.eos_id < info.vocab_size);
  FATHOM_CHECK(parse_dataset_json(dataset_json(info), "written") == info);
}

void check_ids(std::span<const std::byte> file, TokenShard shard, const DatasetInfo& info) {
  constexpr size_t kHeader = 24;
  if (file.size() >= kHeader) shard.xxh3 = XXH3_64bits(file.data() + kHeader, file.size() - kHeader);
  check_shard(file, shard, info, "00000.tokens");
  const auto width = static_cast<size_t>(info.token_bytes);
  FATHOM_CHECK(file.size() == kHeader + static_cast<size_t>(shard.n_tokens) * width);
  for (size_t at = kHeader; at < file.size(); at += width) {
    uint32_t id = 0;
    std::memcpy(&id, file.data() + at, width);
    FATHOM_CHECK(id < info.vocab_size);
  }
}

}  // namespace
}  // namespace fathom

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size), behind = std::min(end + 1, size);
  try {
    const DatasetInfo info = parse_dataset_json(sealed(input.substr(0, end)), "dataset.json");
    check_info(info);
    // Of its exact size, so that a byte beyond it is seen.
    std::vector<std::byte> shard(size - behind);
    input.substr(behind).copy(reinterpret_cast<char*>(shard.data()), shard.size());
    check_ids(shard, info.shards[0], info);
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
  }
  return 0;
}
