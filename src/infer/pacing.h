// How many tokens of prompts a pass reads beside sequences that generate. Where a pass reads much of a model's weights
// for a few tokens already, small pieces of prompts cost nearly as much as large ones: so those that generate go ahead
// by themselves for a while, and then wait once, longer, while prompts are read in a large piece. Of their gaps 95 in
// 100 stay short; some long ones may come at once where there were none for a while.
#pragma once

#include <cstdint>

namespace fathom {

struct PromptRoom {
  int64_t tokens;
  bool whole_only = false;  // nothing but prompts that end in this pass
};

class Pacing {
 public:
  // gap_s: what most gaps between two tokens stay within; long_gap_s: one in 22 of them, or half the time.
  Pacing(double gap_s, double long_gap_s);

  // Of the next pass. n_unread: of all prompts; most: what a pass may read at all.
  PromptRoom room(int64_t n_generating, int64_t n_unread, int64_t most);
  // What it took.
  void took(int64_t n_generating, int64_t n_prompt_tokens, double seconds);

 private:
  int64_t tokens_within(double seconds, int64_t most) const;

  double gap_s_, long_gap_s_;
  double plain_s_ = 0, prompt_token_s_ = 0;  // measured: a pass without prompts, and what each token adds; 0: not yet
  bool is_long_ = false;                     // the next, or the one that runs
  double long_gaps_;                         // that there may be; below zero: that there were too many
  double since_long_s_ = 0, long_s_ = 0;     // of passes in which something generated; of the last long one
};

}  // namespace fathom
