// A template cut into tokens, white space trimmed as trim_blocks, lstrip_blocks and the - and + signs say.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_value.h"

namespace fathom::jinja {

enum class TokenKind {
  kData,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kText,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  int line;
  std::string text{};  // data, name, unescaped text literal, operator
  Value number{};
};

// Throws Error, its message naming the line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace fathom::jinja
