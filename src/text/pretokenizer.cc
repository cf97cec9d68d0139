#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenizer.h"

#include <pcre2.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/utf8.h"

namespace fathom {
namespace {

constexpr uint32_t kMatchLimit = 20'000'000;  // backtracking steps of one search
constexpr uint32_t kHeapLimitKib = 256 * 1024;
constexpr size_t kMaxPatternBytes = 64 * 1024;

// The same language in this engine's syntax. \s is exactly White_Space there, here it has U+180E too; classes nest and
// intersect there, which this engine would silently read as literal brackets.
std::string translate(const std::string& pattern, const std::string& where) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        out += "\\p{White_Space}";
      } else if (escaped == 'S') {
        out += "\\P{White_Space}";
      } else if (escaped == 'h' || escaped == 'H') {
        throw Error("{}: the regex uses \\{}, which is not supported: {}", where, escaped, printable(pattern));
      } else {
        out += c;
        out += escaped;
      }
      continue;
    }
    if (in_class) {
      if (c == '&' && pattern.compare(i, 2, "&&") == 0) {
        throw Error("{}: the regex intersects classes (&&), which is not supported: {}", where, printable(pattern));
      }
      if (c == '[' && pattern.compare(i, 2, "[:") != 0) {
        throw Error("{}: the regex nests classes, which is not supported: {}", where, printable(pattern));
      }
      if (c == '[') {
        const size_t close = pattern.find(":]", i + 2);
        if (close != std::string::npos) {
          out += pattern.substr(i, close + 2 - i);
          i = close + 1;
          continue;
        }
      }
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      out += c;
      if (pattern.compare(i + 1, 1, "^") == 0) out += pattern[++i];
      if (pattern.compare(i + 1, 1, "]") == 0) out += pattern[++i];  // a bracket in first place is literal
      continue;
    }
    out += c;
  }
  return out;
}

std::string pcre_message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string pattern;  // for messages
  std::string where;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern, bool literal, const std::string& where) : code_(std::make_unique<Code>()) {
  if (pattern.empty()) throw Error("{}: a Split has an empty pattern", where);
  if (pattern.size() > kMaxPatternBytes) {
    throw Error("{}: a Split pattern has {} bytes, more than {}", where, pattern.size(), kMaxPatternBytes);
  }
  const std::string translated = literal ? pattern : translate(pattern, where);
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) throw Error("no memory for a regex");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 100);
  const uint32_t options =
      literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE at = 0;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error, &at,
                              context.get());
  if (code_->code == nullptr) {
    throw Error("{}: not a valid regex ({}): {}", where, pcre_message(error), printable(pattern));
  }
  code_->jit = pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE) == 0;
  code_->pattern = pattern;
  code_->where = where;
}

Regex::~Regex() = default;
Regex::Regex(Regex&& other) noexcept = default;
Regex& Regex::operator=(Regex&& other) noexcept = default;

struct Regex::Matcher::Block {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  ~Block() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
};

Regex::Matcher::Matcher(const Regex& regex) : code_(regex.code_.get()), block_(std::make_unique<Block>()) {
  block_->data = pcre2_match_data_create(1, nullptr);
  block_->context = pcre2_match_context_create(nullptr);
  if (block_->data == nullptr || block_->context == nullptr) throw Error("no memory for a regex");
  pcre2_set_match_limit(block_->context, kMatchLimit);
  pcre2_set_depth_limit(block_->context, kMatchLimit);
  pcre2_set_heap_limit(block_->context, kHeapLimitKib);
}

Regex::Matcher::~Matcher() = default;
Regex::Matcher::Matcher(Matcher&& other) noexcept = default;

bool Regex::Matcher::find(std::string_view text, size_t from, size_t& begin, size_t& end) {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const size_t start = from;
  while (from < text.size()) {
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (code_->jit) found = pcre2_jit_match(code_->code, subject, text.size(), from, 0, block_->data, block_->context);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
      found = pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, block_->data,
                          block_->context);
    }
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) {
      throw Error("{}: the regex takes too long on this text ({}): {}", code_->where, pcre_message(found),
                  printable(code_->pattern));
    }
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(block_->data);
    if (span[1] > span[0]) {
      begin = span[0];
      end = span[1];
      return true;
    }
    if (span[0] > start && span[0] < text.size()) {  // an empty match cuts where it stands
      begin = end = span[0];
      return true;
    }
    from += utf8_unit(text.substr(from)).bytes;
  }
  return false;
}

Pretokenizer::Pretokenizer(std::vector<SplitRule> rules, const std::string& where) : rules_(std::move(rules)) {
  for (const SplitRule& rule : rules_) regexes_.emplace_back(rule.pattern, rule.literal, where);
}

Pretokenizer::Cutter::Cutter(const Pretokenizer& pretokenizer) : pretokenizer_(&pretokenizer) {
  for (const Regex& regex : pretokenizer.regexes_) matchers_.emplace_back(regex);
}

std::vector<Pretokenizer::Cutter::Piece> Pretokenizer::Cutter::pieces(size_t rule, std::string_view text) {
  const SplitRule& split = pretokenizer_->rules_[rule];
  std::vector<Piece> parts;
  size_t done = 0, begin = 0, end = 0;
  while (matchers_[rule].find(text, done, begin, end)) {
    if (begin > done) parts.push_back({done, begin, split.invert});
    if (end > begin) parts.push_back({begin, end, !split.invert});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), split.invert});

  std::vector<Piece> out;
  bool previous_match = false;
  switch (split.behavior) {
    case SplitBehavior::isolated:
      return parts;
    case SplitBehavior::removed:
      for (const Piece& part : parts) {
        if (!part.match) out.push_back(part);
      }
      return out;
    case SplitBehavior::contiguous:
      for (const Piece& part : parts) {
        if (!out.empty() && out.back().match == part.match) {
          out.back().end = part.end;
        } else {
          out.push_back(part);
        }
      }
      return out;
    case SplitBehavior::merged_with_previous:
      for (const Piece& part : parts) {
        if (part.match && !previous_match && !out.empty()) {
          out.back().end = part.end;
        } else {
          out.push_back(part);
        }
        previous_match = part.match;
      }
      return out;
    case SplitBehavior::merged_with_next:
      std::reverse(parts.begin(), parts.end());
      for (const Piece& part : parts) {
        if (part.match && !previous_match && !out.empty()) {
          out.back().begin = part.begin;
        } else {
          out.push_back(part);
        }
        previous_match = part.match;
      }
      std::reverse(out.begin(), out.end());
      return out;
  }
  return out;
}

}  // namespace fathom
