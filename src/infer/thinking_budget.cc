#include "infer/thinking_budget.h"

#include <algorithm>

#include "base/error.h"

namespace fathom {

ThinkingBudgetState::ThinkingBudgetState(const ThinkingBudget& budget)
    : budget_(budget), state_(budget.begin.empty() ? State::thoughts : State::begin) {
  FATHOM_CHECK(!budget.end_ids.empty());
}

std::optional<int32_t> ThinkingBudgetState::forced() const {
  if (state_ != State::thoughts || n_tokens_ < budget_.tokens) return std::nullopt;
  return budget_.end_ids[n_forced_];
}

void ThinkingBudgetState::take(std::string_view text) {
  switch (state_) {
    case State::begin:
      text_ += text;
      if (text_.starts_with(budget_.begin)) {
        state_ = State::thoughts;
        text_.erase(0, budget_.begin.size());
        leave_at_end();
      } else if (!budget_.begin.starts_with(text_)) {
        state_ = State::behind;
      }
      break;
    case State::thoughts:
      if (forced()) {
        if (++n_forced_ == budget_.end_ids.size()) state_ = State::behind;
        break;
      }
      ++n_tokens_;
      text_ += text;
      leave_at_end();
      break;
    case State::behind:
      break;
  }
}

void ThinkingBudgetState::leave_at_end() {
  size_t longest = 1;
  for (const std::string& end : budget_.ends) {
    if (text_.find(end) != std::string::npos) state_ = State::behind;
    longest = std::max(longest, end.size());
  }
  if (text_.size() >= longest) text_.erase(0, text_.size() - (longest - 1));
}

}  // namespace fathom
