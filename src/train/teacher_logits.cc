#include "train/teacher_logits.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/checksum.h"
#include "base/error.h"
#include "base/json.h"
#include "number/formats.h"
#include "ops/cross_entropy.h"
#include "text/token_shards.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
namespace dom = simdjson::dom;

constexpr const char* kTeacherJson = "teacher.json";
constexpr const char* kFormat = "fathom-teacher-logits";
constexpr int64_t kVersion = 1;
constexpr size_t kMaxJsonBytes = size_t{16} << 20;
constexpr size_t kMaxShards = 99'999;
constexpr const char* kMakeAnew = "make them anew with fathom distill logits";

std::string shard_file(size_t index) { return fmt::format("logits-{:05}.safetensors", index); }

template <class T>
T field(dom::object object, const char* key, const std::string& where) {
  T value{};
  if (object[key].get(value) != simdjson::SUCCESS) throw Error("{}: {} is missing or wrong", where, key);
  return value;
}
int64_t count(dom::object object, const char* key, int64_t least, int64_t most, const std::string& where) {
  const auto value = field<int64_t>(object, key, where);
  if (value < least || value > most) {
    throw Error("{}: {} is {}, must be between {} and {}", where, key, value, least, most);
  }
  return value;
}

uint64_t checksum_of(const TaughtSequence& sequence) {
  Xxh3 sum;
  sum.update(sequence.tokens.data(), sequence.tokens.size_bytes());
  sum.update(sequence.next.data(), sequence.next.size_bytes());
  return sum.value();
}

// A tensor of a shard as numbers of the host; `rank` and what of the shape is known must be so.
template <class T>
std::vector<T> numbers_of(const SafetensorsFile& file, const char* name, Format format, int64_t columns) {
  const StoredTensor* const t = file.find(name);
  if (t == nullptr) throw Error("{}: has no tensor {}; {}", file.where(), name, kMakeAnew);
  const bool shaped = columns == 0 ? t->shape.size() == 1 : t->shape.size() == 2 && t->shape[1] == columns;
  if (t->format != format || !shaped) {
    throw Error("{}: {} is {} {}, which fits nothing that teacher.json says; {}", file.where(), name, t->dtype,
                shape_text(t->shape), kMakeAnew);
  }
  std::vector<T> numbers(t->data.size() / static_cast<size_t>(format_bytes(format)));
  if constexpr (std::is_same_v<T, float>) {
    to_f32(numbers.data(), t->data.data(), format, std::ssize(numbers));
  } else if (!numbers.empty()) {
    std::memcpy(numbers.data(), t->data.data(), t->data.size());
  }
  return numbers;
}

// Everything that rows may not say.
void check_rows(const TeacherInfo& info, const SafetensorsFile& file, int64_t rows) {
  const auto ids = numbers_of<int32_t>(file, "ids", Format::i32, info.k);
  const auto logprobs = numbers_of<float>(file, "logprobs", info.type, info.k);
  const auto norms = numbers_of<float>(file, "log_norms", Format::f32, std::ssize(info.temperatures));
  if (std::ssize(ids) != rows * info.k || logprobs.size() != ids.size() ||
      std::ssize(norms) != rows * std::ssize(info.temperatures)) {
    throw Error("{}: its tensors do not have the {} rows that its targets need; {}", file.where(), rows, kMakeAnew);
  }
  std::vector<int32_t> sorted(static_cast<size_t>(info.k));
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(ids.begin() + row * info.k, info.k, sorted.begin());
    std::ranges::sort(sorted);
    if (sorted.front() < 0 || sorted.back() >= info.vocab_size) {
      throw Error("{}: row {} names an id outside the vocabulary of {}; {}", file.where(), row, info.vocab_size,
                  kMakeAnew);
    }
    if (std::ranges::adjacent_find(sorted) != sorted.end()) {
      throw Error("{}: row {} names an id twice; {}", file.where(), row, kMakeAnew);
    }
  }
  if (!std::ranges::all_of(logprobs, [](float x) { return std::isfinite(x) && x <= 0; }) ||
      !std::ranges::all_of(norms, [](float x) { return std::isfinite(x); })) {
    throw Error("{}: has a number that is no log probability; {}", file.where(), kMakeAnew);
  }
}

// The sequences of a shard, of which it returns how many tokens were before each, and how many rows.
struct Begins {
  std::vector<int64_t> tokens, rows;
};
Begins check_sequences(const TeacherInfo& info, const SafetensorsFile& file) {
  const auto tokens = numbers_of<int32_t>(file, "tokens", Format::i32, 0);
  const auto next = numbers_of<int32_t>(file, "next", Format::i32, 0);
  Begins begins{numbers_of<int64_t>(file, "seq_offsets", Format::i64, 0), {0}};
  const std::vector<int64_t>& offsets = begins.tokens;
  if (next.size() != tokens.size() || offsets.empty() || offsets.front() != 0 || offsets.back() != std::ssize(tokens) ||
      !std::ranges::is_sorted(offsets)) {
    throw Error("{}: its sequences do not divide its tokens; {}", file.where(), kMakeAnew);
  }
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    int64_t rows = begins.rows.back();
    for (auto t = static_cast<size_t>(offsets[s]); t < static_cast<size_t>(offsets[s + 1]); ++t) {
      const bool wrong_next = next[t] != kNoTarget && (next[t] < 0 || next[t] >= info.vocab_size);
      if (tokens[t] < 0 || tokens[t] >= info.vocab_size || wrong_next) {
        throw Error("{}: token {} is outside the vocabulary of {}; {}", file.where(), t, info.vocab_size, kMakeAnew);
      }
      rows += next[t] != kNoTarget;
    }
    begins.rows.push_back(rows);
  }
  return begins;
}

const std::byte* data_of(const SafetensorsFile& file, const char* name) { return file.find(name)->data.data(); }

}  // namespace

std::string teacher_json(const TeacherInfo& info) {
  using Json = nlohmann::ordered_json;
  Json shards = Json::array();
  for (const TeacherShard& shard : info.shards) {
    shards.push_back({{"file", shard_file(shards.size())},
                      {"sequences", shard.sequences},
                      {"rows", shard.rows},
                      {"xxh3", hex_of(shard.xxh3)}});
  }
  const Json json{{"format", kFormat},
                  {"version", kVersion},
                  {"teacher", info.teacher},
                  {"tokenizer_xxh3", info.tokenizer_xxh3},
                  {"vocab_size", info.vocab_size},
                  {"k", info.k},
                  {"temperatures", info.temperatures},
                  {"type", info.type == Format::f16 ? "f16" : "f32"},
                  {"settings", info.settings},
                  {"whole", info.whole},
                  {"shards", shards}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

TeacherInfo parse_teacher_json(std::string_view json, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(json, where);
  dom::object root;
  std::string_view format;
  if (document.root().get(root) != simdjson::SUCCESS || root["format"].get(format) != simdjson::SUCCESS ||
      format != kFormat) {
    throw Error("{}: says nothing of a teacher's logits: \"format\" is not {}", where, kFormat);
  }
  if (const auto version = field<int64_t>(root, "version", where); version != kVersion) {
    throw Error("{}: is of version {}, this program reads {}", where, version, kVersion);
  }
  TeacherInfo info;
  info.teacher = field<std::string_view>(root, "teacher", where);
  info.tokenizer_xxh3 = field<std::string_view>(root, "tokenizer_xxh3", where);
  info.settings = field<std::string_view>(root, "settings", where);
  info.vocab_size = count(root, "vocab_size", 1, std::numeric_limits<int32_t>::max(), where);
  info.k = count(root, "k", 1, std::min(kMaxTeacherTokens, info.vocab_size), where);
  const auto type = field<std::string_view>(root, "type", where);
  if (type != "f32" && type != "f16") throw Error("{}: type is {}, must be f32 or f16", where, printable(type));
  info.type = type == "f16" ? Format::f16 : Format::f32;
  info.whole = field<bool>(root, "whole", where);
  info.temperatures.clear();
  for (const dom::element element : field<dom::array>(root, "temperatures", where)) {
    double temperature = 0;
    if (element.get(temperature) != simdjson::SUCCESS || !(temperature > 0 && temperature <= 1000)) {
      throw Error("{}: a temperature is no number above 0", where);
    }
    info.temperatures.push_back(temperature);
  }
  if (info.temperatures.empty() || info.temperatures.size() > kMaxTeacherTemperatures) {
    throw Error("{}: has {} temperatures, must be between 1 and {}", where, info.temperatures.size(),
                kMaxTeacherTemperatures);
  }
  for (const dom::element element : field<dom::array>(root, "shards", where)) {
    const std::string name = shard_file(info.shards.size());
    const std::string at = where + ": shard " + name;
    dom::object shard;
    if (element.get(shard) != simdjson::SUCCESS || field<std::string_view>(shard, "file", at) != name) {
      throw Error("{}: is missing or has another name", at);
    }
    if (info.shards.size() == kMaxShards) throw Error("{}: has too many shards", where);
    constexpr int64_t kMost = int64_t{1} << 40;
    const auto text = field<std::string_view>(shard, "xxh3", at);
    char* end = nullptr;
    const std::string digits(text);
    const uint64_t sum = std::strtoull(digits.c_str(), &end, 16);
    if (hex_of(sum) != text) throw Error("{}: xxh3 is no checksum", at);
    info.shards.push_back({count(shard, "sequences", 1, kMost, at), count(shard, "rows", 0, kMost, at), sum});
  }
  return info;
}

TeacherLogits::TeacherLogits(const fs::path& directory, const Tokenizer& tokenizer)
    : where_(printable(directory.native())) {
  const fs::path json = directory / kTeacherJson;
  info_ = parse_teacher_json(read_file(json, kMaxJsonBytes), printable(json.native()));
  if (!info_.whole) {
    throw Error("{}: is not whole, its making was interrupted; run the same fathom distill logits again", where_);
  }
  const DatasetInfo wanted = dataset_for(tokenizer, "");
  if (info_.vocab_size != wanted.vocab_size || info_.tokenizer_xxh3 != wanted.tokenizer_xxh3) {
    throw Error(
        "{}: the teacher's tokenizer (xxh3 {}, {} ids) is not the student's (xxh3 {}, {} ids): their logits speak of "
        "other tokens; learn from its traces instead",
        where_, printable(info_.tokenizer_xxh3), info_.vocab_size, wanted.tokenizer_xxh3, wanted.vocab_size);
  }
  for (const TeacherShard& shard : info_.shards) open_shard(directory / shard_file(shards_.size()), shard);
}

void TeacherLogits::open_shard(const fs::path& path, const TeacherShard& shard) {
  SafetensorsFile file(path);
  if (checksum_of_file(path).xxh3 != shard.xxh3) {
    throw Error("{}: its content changed since it was written; {}", file.where(), kMakeAnew);
  }
  const Begins begins = check_sequences(info_, file);
  if (std::ssize(begins.tokens) != shard.sequences + 1 || begins.rows.back() != shard.rows) {
    throw Error("{}: has {} sequences and {} rows, teacher.json says {} and {}; {}", file.where(),
                std::ssize(begins.tokens) - 1, begins.rows.back(), shard.sequences, shard.rows, kMakeAnew);
  }
  check_rows(info_, file, shard.rows);
  const auto tokens = numbers_of<int32_t>(file, "tokens", Format::i32, 0);
  const auto next = numbers_of<int32_t>(file, "next", Format::i32, 0);
  for (size_t s = 0; s + 1 < begins.tokens.size(); ++s) {
    const auto begin = static_cast<size_t>(begins.tokens[s]);
    const size_t n = static_cast<size_t>(begins.tokens[s + 1]) - begin;
    const TaughtSequence sequence{std::span(tokens).subspan(begin, n), std::span(next).subspan(begin, n)};
    places_.emplace(checksum_of(sequence), Place{shards_.size(), s});
  }
  shards_.push_back({std::move(file), begins.tokens, begins.rows});
}

int64_t TeacherLogits::n_rows() const {
  int64_t n = 0;
  for (const TeacherShard& shard : info_.shards) n += shard.rows;
  return n;
}

uint64_t TeacherLogits::checksum() const {
  Xxh3 sum;
  for (const TeacherShard& shard : info_.shards) sum.update(&shard.xxh3, sizeof shard.xxh3);
  return sum.value();
}

const TeacherLogits::Place* TeacherLogits::find(const TaughtSequence& sequence) const {
  const auto [begin, end] = places_.equal_range(checksum_of(sequence));
  for (auto place = begin; place != end; ++place) {
    const Shard& shard = shards_[place->second.shard];
    const int64_t first = shard.begins[place->second.sequence];
    const int64_t n = shard.begins[place->second.sequence + 1] - first;
    const auto same = [&](const char* name, std::span<const int32_t> ids) {
      const size_t bytes = ids.size_bytes();
      return bytes == 0 || std::memcmp(data_of(shard.file, name) + first * 4, ids.data(), bytes) == 0;
    };
    if (n == std::ssize(sequence.tokens) && same("tokens", sequence.tokens) && same("next", sequence.next)) {
      return &place->second;
    }
  }
  return nullptr;
}

void TeacherLogits::teach(Examples& examples, double temperature, double weight) const {
  const auto at = std::ranges::find(info_.temperatures, temperature);
  if (at == info_.temperatures.end()) {
    throw UsageError(
        "{}: has no norms of temperature {}, but of {}; take one of these, or make logits with --temperatures", where_,
        temperature, fmt::join(info_.temperatures, ", "));
  }
  const int64_t k = info_.k, column = at - info_.temperatures.begin(), n_norms = std::ssize(info_.temperatures);
  TaughtTokens taught{k, {}, {}, temperature, weight};
  taught.ids.assign(examples.next.size() * static_cast<size_t>(k), kNoTarget);
  taught.logprobs.assign(taught.ids.size(), 0);
  size_t begin = 0;
  for (const std::vector<int32_t>& tokens : examples.sequences) {
    const TaughtSequence sequence{tokens, std::span(examples.next).subspan(begin, tokens.size())};
    const Place* const place = find(sequence);
    if (place == nullptr) {
      throw Error(
          "{}: the teacher has not read a sequence of {} tokens that the student is to learn from; make its logits of "
          "the same data, with the same options for what is read of it",
          where_, tokens.size());
    }
    const Shard& shard = shards_[place->shard];
    const int64_t bytes = format_bytes(info_.type);
    int64_t row = shard.rows[place->sequence];
    for (size_t t = 0; t < tokens.size(); ++t) {
      if (sequence.next[t] == kNoTarget) continue;
      const size_t to = (begin + t) * static_cast<size_t>(k);
      float norm = 0;
      std::memcpy(&norm, data_of(shard.file, "log_norms") + (row * n_norms + column) * 4, sizeof norm);
      std::memcpy(taught.ids.data() + to, data_of(shard.file, "ids") + row * k * 4, static_cast<size_t>(k) * 4);
      to_f32(taught.logprobs.data() + to, data_of(shard.file, "logprobs") + row * k * bytes, info_.type, k);
      for (size_t i = to; i < to + static_cast<size_t>(k); ++i) {
        taught.logprobs[i] = static_cast<float>(taught.logprobs[i] / temperature - static_cast<double>(norm));
      }
      ++row;
    }
    begin += tokens.size();
  }
  examples.taught = std::move(taught);
}

TeacherLogitsWriter::TeacherLogitsWriter(fs::path directory, TeacherInfo info, int64_t shard_bytes)
    : directory_(std::move(directory)), info_(std::move(info)), shard_bytes_(shard_bytes) {
  FATHOM_CHECK(info_.k > 0 && info_.k <= kMaxTeacherTokens && info_.shards.empty());
  const std::string name = printable(directory_.native());
  made_.emplace(directory_);
  lock_.emplace(directory_);
  const fs::path json = directory_ / kTeacherJson;
  if (path_exists(json)) {
    TeacherInfo there = parse_teacher_json(read_file(json, kMaxJsonBytes), printable(json.native()));
    std::vector<TeacherShard> shards = std::move(there.shards);
    const bool whole = there.whole;
    there.shards.clear();
    there.whole = false;
    if (teacher_json(there) != teacher_json(info_)) {
      throw UsageError("{}: holds logits of another teacher, other data or other options; give another --out", name);
    }
    info_.shards = std::move(shards);
    info_.whole = whole;
    return;
  }
  for (const fs::path& path : list_directory(directory_)) {
    const std::string file = path.filename().string();
    if (file.starts_with('.') || file.ends_with(".partial") || file.starts_with("logits-")) continue;
    throw UsageError("{}: holds {}, so it is no directory for logits; give another --out", name, printable(file));
  }
  write_file_atomically(json, teacher_json(info_));
}

int64_t TeacherLogitsWriter::sequences_done() const {
  int64_t n = 0;
  for (const TeacherShard& shard : info_.shards) n += shard.sequences;
  return n;
}

void TeacherLogitsWriter::append(const TaughtSequence& sequence, std::span<const int32_t> ids,
                                 std::span<const float> logprobs, std::span<const float> log_norms) {
  FATHOM_CHECK(!info_.whole && sequence.tokens.size() == sequence.next.size() && ids.size() == logprobs.size());
  const auto rows =
      static_cast<size_t>(std::ranges::count_if(sequence.next, [](int32_t target) { return target != kNoTarget; }));
  FATHOM_CHECK(ids.size() == rows * static_cast<size_t>(info_.k));
  FATHOM_CHECK(log_norms.size() == rows * info_.temperatures.size());
  tokens_.insert(tokens_.end(), sequence.tokens.begin(), sequence.tokens.end());
  next_.insert(next_.end(), sequence.next.begin(), sequence.next.end());
  offsets_.push_back(std::ssize(tokens_));
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  logprobs_.insert(logprobs_.end(), logprobs.begin(), logprobs.end());
  log_norms_.insert(log_norms_.end(), log_norms.begin(), log_norms.end());
  const size_t bytes = tokens_.size() * 8 + ids_.size() * static_cast<size_t>(4 + format_bytes(info_.type));
  if (bytes >= static_cast<size_t>(shard_bytes_)) write_shard();
}

void TeacherLogitsWriter::write_shard() {
  const auto matrix = [&](auto& numbers, Format format, int64_t columns) {
    return Tensor(numbers.data(), format, {std::ssize(numbers) / columns, columns});
  };
  const auto list = [&](auto& numbers, Format format) { return Tensor(numbers.data(), format, {std::ssize(numbers)}); };
  const std::vector<TensorToWrite> tensors = {
      {"tokens", list(tokens_, Format::i32), Format::i32},
      {"next", list(next_, Format::i32), Format::i32},
      {"seq_offsets", list(offsets_, Format::i64), Format::i64},
      {"ids", matrix(ids_, Format::i32, info_.k), Format::i32},
      {"logprobs", matrix(logprobs_, Format::f32, info_.k), info_.type},
      {"log_norms", matrix(log_norms_, Format::f32, std::ssize(info_.temperatures)), Format::f32}};
  const fs::path path = directory_ / shard_file(info_.shards.size());
  write_safetensors(path, tensors);
  info_.shards.push_back({std::ssize(offsets_) - 1, std::ssize(ids_) / info_.k, checksum_of_file(path).xxh3});
  write_file_atomically(directory_ / kTeacherJson, teacher_json(info_));
  tokens_.clear();
  next_.clear();
  ids_.clear();
  logprobs_.clear();
  log_norms_.clear();
  offsets_ = {0};
}

const TeacherInfo& TeacherLogitsWriter::commit() {
  if (offsets_.size() > 1) write_shard();
  info_.whole = true;
  write_file_atomically(directory_ / kTeacherJson, teacher_json(info_));
  return info_;
}

}  // namespace fathom
