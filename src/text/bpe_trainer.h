// Makes a byte-level BPE vocabulary from text.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace fathom {

// The tokenizer.json of `vocab_size` ids learned from `texts` (valid UTF-8), with DeepSeek-V3's split patterns: 3
// special tokens (begin, end, padding), the 256 bytes, then one id a merge. Of pairs that are equally frequent the one
// with the lower ids is merged first, so the result depends on the texts alone. Error when the texts hold too few pairs
// for that many.
std::string train_bpe(std::span<const std::string> texts, int64_t vocab_size);

}  // namespace fathom
