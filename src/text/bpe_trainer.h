// Makes a byte-level BPE vocabulary from text.
#pragma once

#include <cstdint>
#include <string>

#include "text/documents.h"

namespace fathom {

// The tokenizer.json of `vocab_size` ids learned from all documents, with DeepSeek-V3's split patterns: 3
// special tokens (begin, end, padding), the 256 bytes, then one id a merge. Of pairs that are equally frequent the one
// with the lower ids is merged first, so the result depends on the texts alone. Memory grows with the number of
// different words. Error when the texts hold too few pairs for that many.
std::string train_bpe(DocumentReader& documents, int64_t vocab_size);

}  // namespace fathom
