#include "infer/pacing.h"

#include <algorithm>

namespace fathom {
namespace {

constexpr double kLongOfGaps = 0.045, kMostLongGaps = 8;
constexpr int64_t kLeastPiece = 16;  // tokens in a long gap, however slow the machine
constexpr double kCertain = 64;      // so many tokens tell what one takes

}  // namespace

Pacing::Pacing(double gap_s, double long_gap_s) : gap_s_(gap_s), long_gap_s_(long_gap_s), long_gaps_(kMostLongGaps) {}

int64_t Pacing::tokens_within(double seconds, int64_t most) const {
  if (prompt_token_s_ <= 0) return most;
  const double n = std::max(0.0, seconds - plain_s_) / prompt_token_s_;
  return n < static_cast<double>(most) ? static_cast<int64_t>(n) : most;
}

PromptRoom Pacing::room(int64_t n_generating, int64_t n_unread, int64_t most) {
  is_long_ = false;
  const int64_t wanted = std::min(n_unread, most);
  if (n_generating == 0 || wanted == 0) return {most};
  const int64_t n_short = tokens_within(gap_s_, most);
  if (wanted <= n_short) return {n_short};
  // Each that generates has a gap.
  is_long_ = long_gaps_ >= std::min(static_cast<double>(n_generating), kMostLongGaps) || since_long_s_ >= long_s_;
  if (!is_long_) return {n_short, true};
  return {std::clamp(tokens_within(long_gap_s_, most), std::min(kLeastPiece, most), most)};
}

void Pacing::took(int64_t n_generating, int64_t n_prompt_tokens, double seconds) {
  const auto average = [](double& mean, double x, double weight) { mean = mean == 0 ? x : mean + weight * (x - mean); };
  if (n_prompt_tokens == 0) {
    average(plain_s_, seconds, 0.2);
  } else {
    const auto n = static_cast<double>(n_prompt_tokens);
    average(prompt_token_s_, std::max(seconds - plain_s_, 0.1 * seconds) / n, 0.5 * std::min(1.0, n / kCertain));
  }
  if (n_generating == 0) return;
  const auto gaps = static_cast<double>(n_generating);
  if (is_long_ && n_prompt_tokens > 0) {
    long_gaps_ -= gaps;
    since_long_s_ = 0;
    long_s_ = seconds;
  } else {
    long_gaps_ = std::min(long_gaps_ + kLongOfGaps * gaps, kMostLongGaps);
    since_long_s_ += seconds;
  }
}

}  // namespace fathom
