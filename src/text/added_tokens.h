// Added tokens: fixed strings that become one id wherever they stand in a text, before anything else looks at it.
#pragma once

#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "text/tokenizer_json.h"

namespace fathom {

// Finds a set of added tokens: leftmost first, of those the longest.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens = {});

  struct Match {
    size_t begin, end;  // with the white space that lstrip and rstrip take
    int32_t id;
  };
  // The first match in text[from..], false if there is none.
  bool find(std::string_view text, size_t from, Match& match) const;
  // Does `text` begin with a mark, or is it the beginning of one? A mark is a token of several characters that is not
  // among `kept`: of one character are letters that some vocabularies add.
  bool begins_mark(std::string_view text, std::span<const std::string_view> kept) const;

 private:
  std::array<bool, 256> first_{};  // bytes that begin a token
  PairTable children_;             // (node, byte) -> node; node 0 is the root
  std::vector<int32_t> token_at_;  // [node]: index into tokens_ or -1
  std::vector<AddedToken> tokens_;
};

}  // namespace fathom
