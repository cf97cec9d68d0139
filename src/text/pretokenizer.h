// Pre-tokenization: the regexes of tokenizer.json cut a text into the words that merges never cross.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// What becomes of the matches of a split: removed, words of their own, glued to a neighbour, or runs of them one word.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

struct SplitRule {
  std::string pattern;
  bool literal = false;  // the pattern is a plain string, not a regex
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // the gaps play the part of the matches
  bool operator==(const SplitRule&) const = default;
};

// A compiled regex with Oniguruma's reading of `$`, `^` and `\s` (the files are written for that library). Threads may
// share it.
class Regex {
 public:
  // Error, beginning with `where`, when the pattern is not valid or means something else to this engine.
  Regex(const std::string& pattern, bool literal, const std::string& where);
  ~Regex();
  Regex(Regex&& other) noexcept;
  Regex& operator=(Regex&& other) noexcept;

  class Matcher;  // one search at a time: a thread makes its own

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

class Regex::Matcher {
 public:
  explicit Matcher(const Regex& regex);
  ~Matcher();
  Matcher(Matcher&& other) noexcept;
  // The first match in text[from..]: [begin, end) into text. False: none. Error when the search goes beyond all bounds.
  bool find(std::string_view text, size_t from, size_t& begin, size_t& end);

 private:
  const Code* code_;
  struct Block;
  std::unique_ptr<Block> block_;
};

// The rules in order, each applied to the pieces that the one before left.
class Pretokenizer {
 public:
  Pretokenizer() = default;
  Pretokenizer(std::vector<SplitRule> rules, const std::string& where);

  // Cuts texts; holds the scratch of the regexes. A thread makes its own.
  class Cutter {
   public:
    explicit Cutter(const Pretokenizer& pretokenizer);
    // Calls word(std::string_view) for every piece of `text`, in order. `text` is valid UTF-8.
    template <class Word>
    void cut(std::string_view text, Word&& word) {
      cut(0, text, word);
    }

   private:
    struct Piece {
      size_t begin, end;
      bool match;
    };
    template <class Word>
    void cut(size_t rule, std::string_view text, Word& word);
    std::vector<Piece> pieces(size_t rule, std::string_view text);  // of every behaviour but `isolated`
    const Pretokenizer* pretokenizer_;
    std::vector<Regex::Matcher> matchers_;  // one a rule
  };

 private:
  std::vector<SplitRule> rules_;
  std::vector<Regex> regexes_;
};

template <class Word>
void Pretokenizer::Cutter::cut(size_t rule, std::string_view text, Word& word) {
  if (text.empty()) return;
  if (rule == matchers_.size()) return word(text);
  if (pretokenizer_->rules_[rule].behavior != SplitBehavior::isolated) {
    for (const Piece& piece : pieces(rule, text))
      cut(rule + 1, text.substr(piece.begin, piece.end - piece.begin), word);
    return;
  }
  // Isolated: matches and gaps alike go on to the next rule; nothing needs to be remembered.
  size_t done = 0, begin = 0, end = 0;
  while (matchers_[rule].find(text, done, begin, end)) {
    if (begin > done) cut(rule + 1, text.substr(done, begin - done), word);
    cut(rule + 1, text.substr(begin, end - begin), word);
    done = end;
  }
  if (done < text.size()) cut(rule + 1, text.substr(done), word);
}

}  // namespace fathom
