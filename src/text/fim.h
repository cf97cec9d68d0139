// Fill-in-the-middle (V3 report 4.1): documents rearranged so that a model learns to write what stands between two
// texts.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace fathom {

class Fim {
 public:
  // Of all documents the part `rate` is rearranged. UsageError where that is above 0 and the tokenizer lacks one of
  // <｜fim▁begin｜>, <｜fim▁hole｜> and <｜fim▁end｜>.
  Fim(const Tokenizer& tokenizer, double rate, uint64_t seed);

  // The ids of a document (UTF-8), as it is or, decided by the seed and its number alone, as PSM:
  //   <｜fim▁begin｜> prefix <｜fim▁hole｜> suffix <｜fim▁end｜> middle
  std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text, int64_t document) const;

 private:
  double rate_;
  uint64_t seed_;
  int32_t begin_ = -1, hole_ = -1, end_ = -1;
};

}  // namespace fathom
