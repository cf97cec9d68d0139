// Datasets of tokens: text that was tokenized once, to be mapped by every run that learns from it.
//
//   DIR/dataset.json       what the ids are, and a checksum of each shard; written last
//   DIR/00000.tokens, ...  ids, one document behind the other
//
// A shard is a header of 24 bytes (the 8 characters "fathomtk", u32 version 1, u32 bytes of an id, u64 number of ids)
// and its ids, u16 where the vocabulary has at most 65536 and u32 otherwise; all little-endian. A document may go on in
// the next shard. docs/data.md has the keys of dataset.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/checksum.h"
#include "base/file.h"
#include "base/thread_pool.h"
#include "text/documents.h"
#include "text/tokenizer.h"

namespace fathom {

inline constexpr int64_t kMaxTokenShardBytes = int64_t{512} << 20;

struct TokenShard {
  int64_t n_tokens = 0;
  uint64_t xxh3 = 0;  // of the bytes behind the header
  bool operator==(const TokenShard&) const = default;
};

// dataset.json.
struct DatasetInfo {
  std::string tokenizer;       // its name, for people
  std::string tokenizer_xxh3;  // of its tokenizer.json, or "bytes"
  int64_t vocab_size = 0;
  int32_t eos_id = -1;  // behind every document; -1: none
  int64_t n_tokens = 0, n_documents = 0;
  int token_bytes = 0;    // 2 or 4
  uint64_t ids_xxh3 = 0;  // of all ids as i32, whatever they are stored as
  double fim_rate = 0;    // text/fim.h
  uint64_t fim_seed = 0;  // 0 where the rate is
  std::vector<TextFile> sources;
  std::vector<TokenShard> shards;
  bool operator==(const DatasetInfo&) const = default;
};

// What a tokenizer says of its ids, all else empty. `name` is for people.
DatasetInfo dataset_for(const Tokenizer& tokenizer, const std::string& name);
// Error, beginning with `where`, unless the ids are of this tokenizer.
void check_tokenizer(const DatasetInfo& info, const Tokenizer& tokenizer, const std::string& where);

std::string dataset_json(const DatasetInfo& info);
// Error where anything is missing, wrong or changed since it was written.
DatasetInfo parse_dataset_json(std::string_view json, const std::string& where);

// Whether `path` is a directory with a dataset.json.
bool is_token_dataset(const std::filesystem::path& path);
DatasetInfo read_dataset_info(const std::filesystem::path& directory);

// The name of shard `index` ("00003.tokens").
std::string shard_name(size_t index);
// Error, beginning with `where`, unless `file` is this shard as it was written, with ids of the vocabulary alone.
void check_shard(std::span<const std::byte> file, const TokenShard& shard, const DatasetInfo& info,
                 const std::string& where);

// One sequence of ids, in memory or in mapped shards.
class TokenIds {
 public:
  TokenIds() = default;
  explicit TokenIds(std::vector<int32_t> ids);
  // Shards that check_shard has seen, in their order.
  TokenIds(std::vector<MappedFile> shards, const DatasetInfo& info);
  TokenIds(TokenIds&&) = default;
  TokenIds& operator=(TokenIds&&) = default;

  int64_t size() const { return size_; }
  // Ids [begin, begin + out.size()), which must be there.
  void copy(int64_t begin, std::span<int32_t> out) const;

 private:
  struct Piece {
    int64_t begin, n_tokens;
    const std::byte* ids;
    int token_bytes;
  };
  int64_t size_ = 0;
  std::vector<Piece> pieces_;
  std::vector<int32_t> memory_;
  std::vector<MappedFile> shards_;
};

struct TokenDataset {
  DatasetInfo info;
  TokenIds ids;
};
// Maps a dataset after reading every shard once, to hold it against its checksum: each shard by a thread of its own.
TokenDataset open_token_dataset(const std::filesystem::path& directory, ThreadPool& pool);

// Writes a dataset piece by piece into DIR.partial beside it, which becomes DIR when it is whole. An older dataset
// there stays until then; anything else in DIR is refused.
class DatasetWriter {
 public:
  DatasetWriter(const std::filesystem::path& directory, DatasetInfo info,
                int64_t max_shard_bytes = kMaxTokenShardBytes);
  ~DatasetWriter();
  DatasetWriter(const DatasetWriter&) = delete;
  DatasetWriter& operator=(const DatasetWriter&) = delete;

  void append(std::span<const int32_t> document);
  const DatasetInfo& info() const { return info_; }
  const DatasetInfo& commit();

 private:
  void write_piece();
  void end_shard();

  std::filesystem::path directory_, partial_;
  DatasetInfo info_;
  int64_t shard_tokens_;  // at most
  std::optional<NewDirectory> parents_;
  std::optional<DirectoryLock> lock_;
  std::optional<AtomicFile> file_;  // the shard that is being written
  std::vector<int32_t> pending_;    // ids not in it yet
  std::vector<std::byte> stored_;   // scratch
  Xxh3 shard_sum_, ids_sum_;
};

}  // namespace fathom
