#include "text/fim.h"

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {
namespace {

constexpr uint64_t kFimStream = 0x66696d00000000;  // apart from all other uses of the seed

bool begins_character(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; }

// Where the character of this number begins; the end of the text for their number.
size_t byte_of_character(std::string_view text, uint64_t number) {
  size_t byte = 0;
  for (; byte < text.size(); ++byte) {
    if (begins_character(text[byte]) && number-- == 0) return byte;
  }
  return byte;
}

}  // namespace

Fim::Fim(const Tokenizer& tokenizer, double rate, uint64_t seed) : rate_(rate), seed_(seed) {
  if (rate == 0) return;
  const auto id_of = [&](const char* token) {
    const int32_t id = tokenizer.id_of(token);
    if (id < 0)
      throw UsageError("--fim-rate {}: the tokenizer has no token {}; take another or leave it out", rate, token);
    return id;
  };
  begin_ = id_of("<｜fim▁begin｜>");
  hole_ = id_of("<｜fim▁hole｜>");
  end_ = id_of("<｜fim▁end｜>");
}

std::vector<int32_t> Fim::encode(const Tokenizer& tokenizer, std::string_view text, int64_t document) const {
  Rng rng(seed_, kFimStream + static_cast<uint64_t>(document));
  if (rng.uniform() >= rate_) return tokenizer.encode(text, false);
  const auto characters = static_cast<uint64_t>(std::ranges::count_if(text, begins_character));
  // Two places between characters, or at the ends; the same one twice leaves no middle.
  const uint64_t a = rng.below(characters + 1), b = rng.below(characters + 1);
  const size_t begin = byte_of_character(text, std::min(a, b)), end = byte_of_character(text, std::max(a, b));
  std::vector<int32_t> ids;
  const auto append = [&](int32_t token, std::string_view piece) {
    ids.push_back(token);
    const std::vector<int32_t> encoded = tokenizer.encode(piece, false);
    ids.insert(ids.end(), encoded.begin(), encoded.end());
  };
  append(begin_, text.substr(0, begin));
  append(hole_, text.substr(end));
  append(end_, text.substr(begin, end - begin));
  return ids;
}

}  // namespace fathom
