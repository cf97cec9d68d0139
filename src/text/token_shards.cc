#include "text/token_shards.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <limits>
#include <new>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "base/arithmetic.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/json.h"
#include "base/terminal.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
namespace dom = simdjson::dom;

static_assert(std::endian::native == std::endian::little, "shards are little-endian and used as they stand");

constexpr const char* kDatasetJson = "dataset.json";
constexpr const char* kFormat = "fathom-tokens";
constexpr uint32_t kVersion = 1;
constexpr size_t kMaxJsonBytes = size_t{256} << 20;  // it names every source
constexpr int64_t kMaxNarrowVocabulary = 65536;
constexpr size_t kPieceIds = size_t{1} << 18;  // written in one go
constexpr size_t kMaxShards = 99'999;

struct ShardHeader {
  char magic[8] = {'f', 'a', 't', 'h', 'o', 'm', 't', 'k'};
  uint32_t version = kVersion, token_bytes = 0;
  uint64_t n_tokens = 0;
};
static_assert(sizeof(ShardHeader) == 24 && std::is_trivially_copyable_v<ShardHeader>);

std::optional<uint64_t> parse_hex(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size() || hex_of(value) != text) return std::nullopt;
  return value;
}

// The last key of dataset.json, whose checksum is that of all before it, and what follows.
constexpr std::string_view kChecksumKey = ",\n \"xxh3\": \"";
constexpr std::string_view kJsonEnd = "\"\n}\n";
constexpr size_t kHexDigits = 16;

// Reads keys of an object; errors say which is wrong.
struct Fields {
  dom::object object;
  std::string where;

  template <class T>
  T get(const char* key) const {
    T value{};
    if (object[key].get(value) != simdjson::SUCCESS) throw Error("{}: {} is missing or wrong", where, key);
    return value;
  }
  int64_t count(const char* key, int64_t least, int64_t most) const {
    const auto value = get<int64_t>(key);
    if (value < least || value > most) {
      throw Error("{}: {} is {}, must be between {} and {}", where, key, value, least, most);
    }
    return value;
  }
  uint64_t checksum(const char* key) const {
    const std::optional<uint64_t> value = parse_hex(get<std::string_view>(key));
    if (!value) throw Error("{}: {} is no checksum", where, key);
    return *value;
  }
  double fraction(const char* key) const {
    const auto value = get<double>(key);
    if (!(value >= 0 && value <= 1)) throw Error("{}: {} is {}, must be between 0 and 1", where, key, value);
    return value;
  }
};

Fields fields_of(dom::element element, std::string where) {
  dom::object object;
  if (element.get(object) != simdjson::SUCCESS) throw Error("{}: is no object", where);
  return {object, std::move(where)};
}

void read_lists(const Fields& root, DatasetInfo& info) {
  for (const dom::element entry : root.get<dom::array>("sources")) {
    const Fields source = fields_of(entry, root.where + ": a source");
    info.sources.push_back(
        {source.get<std::string_view>("path"), source.get<uint64_t>("bytes"), source.get<int64_t>("modified_ns")});
  }
  int64_t sum = 0;
  for (const dom::element entry : root.get<dom::array>("shards")) {
    const std::string name = shard_name(info.shards.size());
    const Fields shard = fields_of(entry, root.where + ": shard " + name);
    if (shard.get<std::string_view>("file") != name) throw Error("{}: has another name", shard.where);
    info.shards.push_back({shard.count("tokens", 1, int64_t{1} << 40), shard.checksum("xxh3")});
    const std::optional<int64_t> total = checked_add(sum, info.shards.back().n_tokens);
    if (!total || info.shards.size() > kMaxShards) throw Error("{}: has too many tokens", root.where);
    sum = *total;
  }
  if (sum != info.n_tokens) {
    throw Error("{}: tokens is {}, its shards have {}", root.where, info.n_tokens, sum);
  }
}

// Who removes a dataset must not remove what else somebody keeps there.
void check_replaceable(const fs::path& directory) {
  if (!path_exists(directory)) return;
  const std::string name = printable(directory.native());
  if (!path_is_directory(directory)) throw Error("{}: is a file; give another directory", name);
  for (const fs::path& path : list_directory(directory)) {
    const std::string file = path.filename().string();
    const bool shard = file.size() == shard_name(0).size() && file.ends_with(".tokens");
    if (shard || file == kDatasetJson) continue;
    throw Error("{}: holds {}, so it is no dataset to write over; give another directory", name, printable(file));
  }
}

// With an absolute path and no slash at the end, so that it has a name.
fs::path clean(const fs::path& directory) {
  fs::path path = fs::absolute(directory).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

}  // namespace

std::string shard_name(size_t index) { return fmt::format("{:05}.tokens", index); }

DatasetInfo dataset_for(const Tokenizer& tokenizer, const std::string& name) {
  DatasetInfo info;
  info.tokenizer = name;
  const std::string& json = tokenizer.json();
  info.tokenizer_xxh3 = tokenizer.is_bytes() ? "bytes" : xxh3_of(json);
  info.vocab_size = tokenizer.vocab_size();
  info.eos_id = tokenizer.eos_id();
  info.token_bytes = info.vocab_size <= kMaxNarrowVocabulary ? 2 : 4;
  return info;
}

void check_tokenizer(const DatasetInfo& info, const Tokenizer& tokenizer, const std::string& where) {
  const DatasetInfo wanted = dataset_for(tokenizer, "");
  if (info.vocab_size != wanted.vocab_size) {
    throw Error("{}: was made with a vocabulary of {} ids, the tokenizer has {}; make it anew with fathom tokenize",
                where, info.vocab_size, wanted.vocab_size);
  }
  if (info.tokenizer_xxh3 != wanted.tokenizer_xxh3) {
    throw Error(
        "{}: was made with another tokenizer ({}, xxh3 {}; the one given: {}); make it anew with fathom tokenize",
        where, printable(info.tokenizer), info.tokenizer_xxh3, wanted.tokenizer_xxh3);
  }
  if (info.eos_id != wanted.eos_id) {
    throw Error("{}: its documents end with id {}, those of the tokenizer with {}; make it anew with fathom tokenize",
                where, info.eos_id, wanted.eos_id);
  }
}

std::string dataset_json(const DatasetInfo& info) {
  using Json = nlohmann::ordered_json;
  Json sources = Json::array(), shards = Json::array();
  for (const TextFile& file : info.sources) {
    sources.push_back({{"path", file.path.native()}, {"bytes", file.bytes}, {"modified_ns", file.modified_ns}});
  }
  for (const TokenShard& shard : info.shards) {
    shards.push_back({{"file", shard_name(shards.size())}, {"tokens", shard.n_tokens}, {"xxh3", hex_of(shard.xxh3)}});
  }
  const Json json{{"format", kFormat},
                  {"version", kVersion},
                  {"tokenizer", {{"name", info.tokenizer}, {"xxh3", info.tokenizer_xxh3}}},
                  {"vocab_size", info.vocab_size},
                  {"eos_id", info.eos_id},
                  {"tokens", info.n_tokens},
                  {"documents", info.n_documents},
                  {"token_bytes", info.token_bytes},
                  {"ids_xxh3", hex_of(info.ids_xxh3)},
                  {"fim", {{"rate", info.fim_rate}, {"seed", info.fim_seed}}},
                  {"sources", sources},
                  {"shards", shards}};
  std::string text = json.dump(1, ' ', false, Json::error_handler_t::replace);
  text.resize(text.size() - 2);  // "\n}"
  const std::string checksum = xxh3_of(text);
  return fmt::format("{}{}{}{}", text, kChecksumKey, checksum, kJsonEnd);
}

DatasetInfo parse_dataset_json(std::string_view json, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(json, where);
  const Fields root = fields_of(document.root(), where);
  std::string_view format;
  if (root.object["format"].get(format) != simdjson::SUCCESS || format != kFormat) {
    throw Error("{}: is no dataset of tokens: \"format\" is not {}", where, kFormat);
  }
  if (const auto version = root.get<int64_t>("version"); version != kVersion) {
    throw Error("{}: is of version {}, this program reads {}", where, version, kVersion);
  }
  const size_t end_bytes = kChecksumKey.size() + kHexDigits + kJsonEnd.size();
  const std::string_view body = json.substr(0, json.size() - std::min(json.size(), end_bytes));
  if (json.substr(body.size()) != fmt::format("{}{}{}", kChecksumKey, xxh3_of(body), kJsonEnd)) {
    throw Error("{}: its content changed since it was written; make the dataset anew", where);
  }
  constexpr int64_t kMostIds = std::numeric_limits<int32_t>::max();
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  DatasetInfo info;
  const Fields tokenizer{root.get<dom::object>("tokenizer"), where + ": tokenizer"};
  info.tokenizer = tokenizer.get<std::string_view>("name");
  info.tokenizer_xxh3 = tokenizer.get<std::string_view>("xxh3");
  if (info.tokenizer_xxh3 != "bytes" && !parse_hex(info.tokenizer_xxh3)) {
    throw Error("{}: xxh3 is no checksum", tokenizer.where);
  }
  info.vocab_size = root.count("vocab_size", 1, kMostIds);
  info.eos_id = static_cast<int32_t>(root.count("eos_id", -1, info.vocab_size - 1));
  info.n_tokens = root.count("tokens", 1, kMost);
  info.n_documents = root.count("documents", 1, kMost);
  info.token_bytes = static_cast<int>(root.count("token_bytes", 2, 4));
  if (info.token_bytes != (info.vocab_size <= kMaxNarrowVocabulary ? 2 : 4)) {
    throw Error("{}: token_bytes is {}, which does not fit vocab_size {}", where, info.token_bytes, info.vocab_size);
  }
  info.ids_xxh3 = root.checksum("ids_xxh3");
  const Fields fim{root.get<dom::object>("fim"), where + ": fim"};
  info.fim_rate = fim.fraction("rate");
  info.fim_seed = fim.get<uint64_t>("seed");
  read_lists(root, info);
  return info;
}

bool is_token_dataset(const fs::path& path) { return path_is_directory(path) && path_exists(path / kDatasetJson); }

DatasetInfo read_dataset_info(const fs::path& directory) {
  const fs::path file = directory / kDatasetJson;
  return parse_dataset_json(read_file(file, kMaxJsonBytes), printable(file.native()));
}

void check_shard(std::span<const std::byte> file, const TokenShard& shard, const DatasetInfo& info,
                 const std::string& where) {
  ShardHeader wanted;
  wanted.token_bytes = static_cast<uint32_t>(info.token_bytes);
  wanted.n_tokens = static_cast<uint64_t>(shard.n_tokens);
  if (file.size() < sizeof wanted || std::memcmp(file.data(), &wanted, sizeof wanted) != 0) {
    throw Error("{}: does not begin as a shard of {} tokens of {} bytes; make the dataset anew", where, shard.n_tokens,
                info.token_bytes);
  }
  const std::span<const std::byte> ids = file.subspan(sizeof wanted);
  const auto token_bytes = static_cast<size_t>(info.token_bytes);
  if (ids.size() % token_bytes != 0 || ids.size() / token_bytes != static_cast<size_t>(shard.n_tokens)) {
    throw Error("{}: has {} bytes, {} tokens of {} bytes need {}; make the dataset anew", where, file.size(),
                shard.n_tokens, info.token_bytes, sizeof wanted + static_cast<size_t>(shard.n_tokens) * token_bytes);
  }
  if (XXH3_64bits(ids.data(), ids.size()) != shard.xxh3) {
    throw Error("{}: its content changed since it was written; make the dataset anew", where);
  }
  const auto greatest = [&]<class T>(T) {  // mapped files begin at a page, and the header has 24 bytes
    const auto* const first = reinterpret_cast<const T*>(ids.data());
    T most = 0;
    for (int64_t i = 0; i < shard.n_tokens; ++i) most = std::max(most, first[i]);
    return static_cast<int64_t>(most);
  };
  const int64_t most = info.token_bytes == 2 ? greatest(uint16_t{}) : greatest(uint32_t{});
  if (most >= info.vocab_size) throw Error("{}: has the id {} of {}", where, most, info.vocab_size);
}

TokenIds::TokenIds(std::vector<int32_t> ids) : size_(static_cast<int64_t>(ids.size())), memory_(std::move(ids)) {
  pieces_.push_back({0, size_, reinterpret_cast<const std::byte*>(memory_.data()), sizeof(int32_t)});
}

TokenIds::TokenIds(std::vector<MappedFile> shards, const DatasetInfo& info) : shards_(std::move(shards)) {
  for (size_t i = 0; i < shards_.size(); ++i) {
    const int64_t n = info.shards[i].n_tokens;
    pieces_.push_back({size_, n, shards_[i].bytes().data() + sizeof(ShardHeader), info.token_bytes});
    size_ += n;
  }
}

void TokenIds::copy(int64_t begin, std::span<int32_t> out) const {
  FATHOM_CHECK(begin >= 0 && begin <= size_ && static_cast<int64_t>(out.size()) <= size_ - begin);
  auto piece = std::ranges::upper_bound(pieces_, begin, {}, &Piece::begin);
  for (size_t done = 0; done < out.size();) {
    const Piece& from = *(piece - 1);
    const int64_t first = begin + static_cast<int64_t>(done) - from.begin;
    const auto n = static_cast<size_t>(std::min(from.n_tokens - first, static_cast<int64_t>(out.size() - done)));
    const std::byte* const ids = from.ids + first * from.token_bytes;
    if (from.token_bytes == 4) {
      std::memcpy(out.data() + done, ids, n * sizeof(int32_t));
    } else {
      const auto* const narrow = reinterpret_cast<const uint16_t*>(ids);
      std::copy(narrow, narrow + n, out.begin() + static_cast<int64_t>(done));
    }
    done += n;
    ++piece;
  }
}

TokenDataset open_token_dataset(const fs::path& directory, ThreadPool& pool) {
  DatasetInfo info = read_dataset_info(directory);
  std::vector<MappedFile> shards(info.shards.size());
  constexpr double kWorthTelling = 1 << 30;
  if (const double bytes = static_cast<double>(info.n_tokens) * info.token_bytes; bytes > kWorthTelling) {
    log("{}: reading {} to verify it", printable(directory.native()), human_bytes(bytes));
  }
  pool.run(static_cast<int64_t>(shards.size()), [&](int64_t i, int) {
    const auto at = static_cast<size_t>(i);
    const fs::path file = directory / shard_name(at);
    shards[at] = MappedFile(file);
    check_shard(shards[at].bytes(), info.shards[at], info, printable(file.native()));
  });
  TokenIds ids(std::move(shards), info);
  return {std::move(info), std::move(ids)};
}

DatasetWriter::DatasetWriter(const fs::path& directory, DatasetInfo info, int64_t max_shard_bytes)
    : directory_(clean(directory)),
      partial_(directory_),
      info_(std::move(info)),
      shard_tokens_((max_shard_bytes - static_cast<int64_t>(sizeof(ShardHeader))) / info_.token_bytes) {
  FATHOM_CHECK(shard_tokens_ > 0);
  check_replaceable(directory_);
  partial_ += ".partial";
  parents_.emplace(directory_.parent_path());
  make_directory(partial_);
  lock_.emplace(partial_);
  for (const auto& left : fs::directory_iterator(partial_)) fs::remove_all(left);  // by one that was killed
}

DatasetWriter::~DatasetWriter() {
  file_.reset();
  std::error_code ignored;
  if (lock_) fs::remove_all(partial_, ignored);  // not there any more when it was committed
}

void DatasetWriter::append(std::span<const int32_t> document) {
  ++info_.n_documents;
  info_.n_tokens += static_cast<int64_t>(document.size());
  while (!document.empty()) {
    const size_t n = std::min(document.size(), kPieceIds - pending_.size());
    pending_.insert(pending_.end(), document.begin(), document.begin() + static_cast<int64_t>(n));
    document = document.subspan(n);
    if (pending_.size() == kPieceIds) write_piece();
  }
}

void DatasetWriter::write_piece() {
  ids_sum_.update(pending_.data(), pending_.size() * sizeof(int32_t));
  for (size_t done = 0; done < pending_.size();) {
    if (!file_) {
      if (info_.shards.size() == kMaxShards) throw Error("{}: more than {} shards", directory_.string(), kMaxShards);
      file_.emplace(partial_ / shard_name(info_.shards.size()));
      const ShardHeader unknown_yet;
      file_->write(&unknown_yet, sizeof unknown_yet);
      info_.shards.emplace_back();
      shard_sum_ = {};
    }
    TokenShard& shard = info_.shards.back();
    const size_t n = std::min(pending_.size() - done, static_cast<size_t>(shard_tokens_ - shard.n_tokens));
    const int32_t* const ids = pending_.data() + done;
    stored_.resize(n * static_cast<size_t>(info_.token_bytes));
    if (info_.token_bytes == 2) {
      std::transform(ids, ids + n, reinterpret_cast<uint16_t*>(stored_.data()),
                     [](int32_t id) { return static_cast<uint16_t>(id); });
    } else {
      std::memcpy(stored_.data(), ids, stored_.size());
    }
    file_->write(stored_.data(), stored_.size());
    shard_sum_.update(stored_.data(), stored_.size());
    shard.n_tokens += static_cast<int64_t>(n);
    done += n;
    if (shard.n_tokens == shard_tokens_) end_shard();
  }
  pending_.clear();
}

void DatasetWriter::end_shard() {
  TokenShard& shard = info_.shards.back();
  shard.xxh3 = shard_sum_.value();
  ShardHeader header;
  header.token_bytes = static_cast<uint32_t>(info_.token_bytes);
  header.n_tokens = static_cast<uint64_t>(shard.n_tokens);
  file_->write_at(0, &header, sizeof header);
  file_->commit();
  file_.reset();
}

const DatasetInfo& DatasetWriter::commit() {
  if (info_.n_tokens == 0) throw Error("{}: not written: there is no text in the data", printable(directory_.native()));
  write_piece();
  if (file_) end_shard();
  info_.ids_xxh3 = ids_sum_.value();
  write_file_atomically(partial_ / kDatasetJson, dataset_json(info_));
  check_replaceable(directory_);
  std::error_code error;
  fs::remove_all(directory_, error);
  if (!error) fs::rename(partial_, directory_, error);
  if (error) throw Error("{}: cannot write: {}", printable(directory_.native()), error.message());
  lock_.reset();
  sync_directory(directory_.parent_path());
  return info_;
}

}  // namespace fathom
