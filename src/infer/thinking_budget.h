// Thoughts of a limited length: once so many tokens have been generated within them, what ends them comes next, and the
// answer behind it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

struct ThinkingBudget {
  int64_t tokens = 0;               // generated within the thoughts at most
  std::vector<int32_t> end_ids{};   // put behind them, one at least
  std::vector<std::string> ends{};  // texts by which the output leaves them by itself
  std::string begin{};              // empty: the output begins within thoughts; else it does where it begins with this
};

// Where one output stands. A function of its tokens alone, so that it does not matter how they were come by.
class ThinkingBudgetState {
 public:
  explicit ThinkingBudgetState(const ThinkingBudget& budget);

  // The token that must come, where none else may.
  std::optional<int32_t> forced() const;
  // A token that was taken, and the text that is whole with it.
  void take(std::string_view text);

 private:
  enum class State { begin, thoughts, behind };
  void leave_at_end();

  ThinkingBudget budget_;
  State state_;
  std::string text_{};  // what may be the beginning of a mark
  int64_t n_tokens_ = 0;
  size_t n_forced_ = 0;
};

}  // namespace fathom
