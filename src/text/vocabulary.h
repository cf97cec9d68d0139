// A byte-level BPE tokenizer as plain lists, which is how GGUF files have it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/pretokenizer.h"
#include "text/tokenizer_json.h"

namespace fathom {

// As GGUF numbers them.
enum class TokenKind { normal = 1, unknown, control, user_defined, unused, byte };

struct Vocabulary {
  std::string pretokenizer;         // the name of its splits, see find_pretokenizer
  std::vector<std::string> tokens;  // [id]: normal ones spelled in the byte alphabet, others as they are
  std::vector<int64_t> kinds;       // [id]: a TokenKind, once tokenizer_json_of has looked at it
  std::vector<std::string> merges;  // "a b", lowest rank first
  int64_t bos = -1, eos = -1;       // ids; -1: none
  std::optional<bool> add_bos;      // see Tokenizer::adds_bos
  std::string chat_template;        // Jinja; empty: none
};

// What stands for an id that no text becomes.
std::string unused_token(size_t id);

// What is done to texts by a name of llama.cpp's ("deepseek-v3"), and the name of that; nothing for unknown ones.
std::optional<TextRules> find_pretokenizer(std::string_view name);
std::optional<std::string> name_of_pretokenizer(const TextRules& rules);

// The rules, tokens and merges of a tokenizer.json. Error where lists cannot say what it does.
Vocabulary vocabulary_of(const TokenizerJson& json, const std::string& where);

// The tokenizer.json of the same tokenizer. Unused ids are left out. Error, beginning with `where`, for a kind of token
// or a pre-tokenizer that is not supported.
std::string tokenizer_json_of(const Vocabulary& vocabulary, const std::string& where);

}  // namespace fathom
