#include "text/dataset.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/utf8.h"

namespace fathom {
namespace {

constexpr uint64_t kShuffleStream = 0x77696e646f7773;  // apart from all other uses of the seed

void append_document(const Tokenizer& tokenizer, std::string_view text, const std::string& where,
                     std::vector<int32_t>& ids) {
  const std::vector<int32_t> document = errors_at(where, [&] { return tokenizer.encode(text, false); });
  ids.insert(ids.end(), document.begin(), document.end());
  if (tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());
}

void append_jsonl(const Tokenizer& tokenizer, std::string_view content, const std::string& file,
                  std::vector<int32_t>& ids) {
  for (int64_t line_number = 1; !content.empty(); ++line_number) {
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const JsonDocument document = JsonDocument::parse(line, fmt::format("{}: line {}", file, line_number));
    std::string_view text;
    if (document.root()["text"].get(text)) throw Error("{}: no \"text\" that is a string", document.where());
    append_document(tokenizer, text, document.where(), ids);
  }
}

// A permutation of [0, n) that needs no table: four Feistel rounds over the next power of four, walked until inside.
class Permutation {
 public:
  Permutation(uint64_t n, Rng& rng) : n_(n) {
    while (uint64_t{1} << (2 * half_bits_) < n) ++half_bits_;
    for (uint64_t& key : keys_) key = rng.next();
  }
  uint64_t operator()(uint64_t i) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    do {
      uint64_t left = i >> half_bits_, right = i & mask;
      for (const uint64_t key : keys_) {
        const uint64_t mixed = left ^ (mix(right ^ key) & mask);
        left = right;
        right = mixed;
      }
      i = left << half_bits_ | right;
    } while (i >= n_);
    return i;
  }

 private:
  static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
  }
  uint64_t n_;
  unsigned half_bits_ = 0;
  std::array<uint64_t, 4> keys_{};
};

}  // namespace

std::vector<int32_t> read_dataset(const Tokenizer& tokenizer, std::span<const std::filesystem::path> files) {
  std::vector<int32_t> ids;
  for (const std::filesystem::path& path : files) {
    const MappedFile file(path);
    const std::string_view content(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    const std::string name = printable(path.native());
    if (const size_t at = first_invalid_utf8(content); at != kNoPosition) {
      throw Error("{}: not UTF-8 at byte {}; training data must be UTF-8 text or .jsonl", name, at);
    }
    if (path.extension() == ".jsonl") {
      append_jsonl(tokenizer, content, name, ids);
    } else if (!content.empty()) {
      append_document(tokenizer, content, name, ids);
    }
  }
  return ids;
}

WindowSampler::WindowSampler(int64_t n_ids, int64_t seq_len, uint64_t seed)
    : n_ids_(n_ids), seq_len_(seq_len), seed_(seed) {
  FATHOM_CHECK(seq_len > 0);
  if (n_ids <= seq_len) {
    throw Error(
        "the training data has {} tokens, too few for one sequence of {} + 1; give more data or a shorter --seq-len",
        n_ids, seq_len);
  }
  // An offset below seq_len costs a window unless there is just one.
  windows_ = std::max<int64_t>(1, (n_ids - 1) / seq_len - 1);
}

int64_t WindowSampler::start(int64_t index) const {
  FATHOM_CHECK(index >= 0);
  const int64_t epoch = index / windows_, in_epoch = index % windows_;
  Rng rng(seed_, kShuffleStream + static_cast<uint64_t>(epoch));
  const int64_t slack = n_ids_ - 1 - windows_ * seq_len_;  // ids that no window of an epoch reaches
  const auto offset = static_cast<int64_t>(rng.below(static_cast<uint64_t>(slack) + 1));
  const Permutation shuffled(static_cast<uint64_t>(windows_), rng);
  return offset + static_cast<int64_t>(shuffled(static_cast<uint64_t>(in_epoch))) * seq_len_;
}

std::vector<Window> sequential_windows(int64_t n_ids, int64_t seq_len) {
  FATHOM_CHECK(seq_len > 0);
  if (n_ids < 2) throw Error("the validation data has {} tokens, at least 2 are needed", n_ids);
  std::vector<Window> windows;
  for (int64_t start = 0; start + 1 < n_ids; start += seq_len) {
    windows.push_back({start, std::min(seq_len + 1, n_ids - start)});
  }
  return windows;
}

}  // namespace fathom
