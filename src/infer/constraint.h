// An output that must follow a grammar: which tokens may come next, and when it is whole.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "text/grammar_matcher.h"
#include "text/tokenizer.h"

namespace fathom {

// Of a request; its sequences share the masks. For one thread.
struct Constraint {
  std::shared_ptr<const Grammar> grammar;
  std::shared_ptr<TokenMasks> masks;
  std::string behind{};  // the grammar holds from this text of the output on (</think>); empty: from the beginning
  std::string begun{};   // what of the grammar's text stands in the prompt
  bool returns = false;  // once its text is whole, the output is free until `behind` comes again; not its end
};

// Where one output stands.
class ConstraintState {
 public:
  explicit ConstraintState(const Constraint& constraint);

  // logits: [vocab]. -inf for tokens that cannot come; the end tokens may come where the text may end.
  void mask(std::span<float> logits, std::span<const int64_t> eos_ids);
  // A token that was taken, and what it says. Error for one that mask() would not have left.
  void take(std::string_view bytes);
  bool is_whole() const { return active_ && matcher_.must_end() && !constraint_.returns; }  // nothing can come any more

 private:
  void leave();

  Constraint constraint_;
  GrammarMatcher matcher_;
  bool active_;
  std::string tail_{};  // of the text in front of the grammar's
  std::vector<uint64_t> allowed_{};
};

}  // namespace fathom
