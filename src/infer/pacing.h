// How many tokens of prompts a pass reads beside sequences that generate. Where a pass reads much of a model's weights
// for a few tokens already, small pieces of prompts cost nearly as much as large ones: so those that generate go ahead
// by themselves for a while, and then wait once, longer, while prompts are read in a large piece. Of their gaps 95 in
// 100 stay short, and what came before the long ones takes about as long to be read.
#pragma once

#include <cstdint>

namespace fathom {

struct PromptRoom {
  int64_t tokens;
  bool whole_only = false;  // nothing but prompts that end in this pass
};

class Pacing {
 public:
  // gap_s: what most gaps between two tokens stay within; long_gap_s: one in 24 of them, or half the time.
  Pacing(double gap_s, double long_gap_s) : gap_s_(gap_s), long_gap_s_(long_gap_s) {}

  // Of the next pass. n_unread: of all prompts; most: what a pass may read at all.
  PromptRoom room(bool beside_generation, int64_t n_unread, int64_t most);
  // What it took.
  void took(bool beside_generation, int64_t n_prompt_tokens, double seconds);

 private:
  int64_t tokens_within(double seconds, int64_t most) const;

  double gap_s_, long_gap_s_;
  double plain_s_ = 0, prompt_token_s_ = 0;  // measured: a pass without prompts, and what each token adds; 0: not yet
  bool is_long_ = false;                     // the next, or the one that runs
  int64_t n_since_long_ = 1 << 20;           // passes in which something generated
  double since_long_s_ = 0, long_s_ = 0;     // and how long they and the last long one took
};

}  // namespace fathom
