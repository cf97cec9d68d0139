#include "text/bpe_trainer.h"

#include <algorithm>
#include <functional>
#include <map>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_json.h"
#include "text/vocabulary.h"

namespace fathom {
namespace {

using Pair = std::pair<int32_t, int32_t>;

struct PairHash {
  size_t operator()(const Pair& pair) const {
    const uint64_t key = static_cast<uint64_t>(pair.first) << 32 | static_cast<uint32_t>(pair.second);
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15) >> 16);
  }
};

struct Word {
  std::vector<int32_t> ids;
  int64_t count;
};

struct PairStatistics {
  int64_t count = 0;
  std::vector<uint32_t> words;  // where it stands or once stood; may repeat
};

// A count that may be out of date; the most frequent first, then the lower ids.
struct Candidate {
  int64_t count;
  Pair pair;
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

std::vector<AddedToken> special_tokens() {
  std::vector<AddedToken> tokens;
  for (const char* content : {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜fim▁begin｜>",
                              "<｜fim▁hole｜>", "<｜fim▁end｜>"}) {
    tokens.push_back(
        {.id = static_cast<int32_t>(tokens.size()), .content = content, .special = true, .normalized = false});
  }
  return tokens;
}

// Finds a word by a view of it.
struct WordHash {
  using is_transparent = void;
  size_t operator()(std::string_view word) const { return std::hash<std::string_view>()(word); }
};

std::vector<Word> count_words(DocumentReader& documents, int32_t first_byte_id) {
  const Pretokenizer pretokenizer(find_pretokenizer("deepseek-v3")->splits, "split patterns");
  Pretokenizer::Cutter cutter(pretokenizer);
  std::unordered_map<std::string, int64_t, WordHash, std::equal_to<>> counts;
  for (Document document; documents.next(document);) {
    cutter.cut(document.text, [&](std::string_view word) {
      const auto found = counts.find(word);
      if (found != counts.end()) {
        ++found->second;
      } else {
        counts.emplace(word, 1);
      }
    });
  }
  std::vector<Word> words;
  words.reserve(counts.size());
  for (const auto& [text, count] : counts) {
    if (text.size() < 2) continue;
    Word& word = words.emplace_back();
    word.count = count;
    for (const char c : text) word.ids.push_back(first_byte_id + static_cast<uint8_t>(c));
  }
  return words;
}

class Trainer {
 public:
  explicit Trainer(std::vector<Word> words) : words_(std::move(words)) {
    for (uint32_t w = 0; w < words_.size(); ++w) {
      const std::vector<int32_t>& ids = words_[w].ids;
      for (size_t i = 0; i + 1 < ids.size(); ++i) add({ids[i], ids[i + 1]}, w);
    }
    for (const auto& [pair, statistics] : pairs_) heap_.push({statistics.count, pair});
  }

  // The most frequent pair that stands at least twice; false: none is left.
  bool best(Pair& pair) {
    while (!heap_.empty()) {
      const Candidate top = heap_.top();
      const int64_t count = pairs_[top.pair].count;
      if (count == top.count) {
        pair = top.pair;
        return count >= 2;
      }
      heap_.pop();
      if (count > 0) heap_.push({count, top.pair});
    }
    return false;
  }

  void merge(Pair pair, int32_t result) {
    std::vector<uint32_t> where = std::move(pairs_[pair].words);
    std::sort(where.begin(), where.end());
    where.erase(std::unique(where.begin(), where.end()), where.end());
    std::vector<Pair> grown;
    for (const uint32_t w : where) {
      std::vector<int32_t>& ids = words_[w].ids;
      const std::vector<int32_t> before = ids;
      size_t n = 0;
      for (size_t i = 0; i < before.size(); ++n) {
        const bool here = i + 1 < before.size() && before[i] == pair.first && before[i + 1] == pair.second;
        ids[n] = here ? result : before[i];
        i += here ? 2 : 1;
      }
      if (n == before.size()) continue;
      ids.resize(n);
      for (size_t i = 0; i + 1 < before.size(); ++i) pairs_[{before[i], before[i + 1]}].count -= words_[w].count;
      for (size_t i = 0; i + 1 < n; ++i) {
        const Pair now{ids[i], ids[i + 1]};
        if (now.first == result || now.second == result) {
          add(now, w);
          grown.push_back(now);
        } else {
          pairs_[now].count += words_[w].count;
        }
      }
    }
    std::sort(grown.begin(), grown.end());
    grown.erase(std::unique(grown.begin(), grown.end()), grown.end());
    for (const Pair& now : grown) heap_.push({pairs_[now].count, now});
  }

 private:
  void add(const Pair& pair, uint32_t word) {
    PairStatistics& statistics = pairs_[pair];
    statistics.count += words_[word].count;
    if (statistics.words.empty() || statistics.words.back() != word) statistics.words.push_back(word);
  }
  std::vector<Word> words_;
  std::unordered_map<Pair, PairStatistics, PairHash> pairs_;
  std::priority_queue<Candidate> heap_;
};

}  // namespace

std::string train_bpe(DocumentReader& documents, int64_t vocab_size) {
  const std::vector<AddedToken> special = special_tokens();
  std::vector<std::string> tokens;
  for (const AddedToken& token : special) tokens.push_back(token.content);
  const auto first_byte_id = static_cast<int32_t>(tokens.size());
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  const auto smallest = static_cast<int64_t>(tokens.size());
  if (vocab_size < smallest || vocab_size > kMaxVocabSize) {
    throw UsageError("--train {}: a byte-level vocabulary has from {} to {} ids", vocab_size, smallest, kMaxVocabSize);
  }
  Trainer trainer(count_words(documents, first_byte_id));
  std::map<std::string, int32_t, std::less<>> seen;
  std::vector<Merge> merges;
  while (static_cast<int64_t>(tokens.size()) < vocab_size) {
    Pair pair;
    if (!trainer.best(pair)) {
      throw Error("the data has pairs for {} ids only, fewer than the {} asked for; give more data", tokens.size(),
                  vocab_size);
    }
    const std::string joined = tokens[static_cast<size_t>(pair.first)] + tokens[static_cast<size_t>(pair.second)];
    // Two ways to the same token share its id.
    const auto [entry, is_new] = seen.emplace(joined, static_cast<int32_t>(tokens.size()));
    if (is_new) tokens.push_back(joined);
    merges.push_back({pair.first, pair.second, entry->second});
    trainer.merge(pair, entry->second);
  }
  // write_tokenizer_json puts the special tokens first itself.
  tokens.erase(tokens.begin(), tokens.begin() + first_byte_id);
  return write_tokenizer_json(find_pretokenizer("deepseek-v3")->splits, tokens, merges, special);
}

}  // namespace fathom
