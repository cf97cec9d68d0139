#include "infer/pacing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace fathom {
namespace {

// A machine on which a pass takes plain_s and token_s for each token of a prompt.
struct Machine {
  double plain_s, token_s;
  double pass(int64_t n) const { return plain_s + static_cast<double>(n) * token_s; }
};

struct Served {
  std::vector<double> gaps;  // sorted
  double seconds = 0, prompt_s = 0;
  int64_t n_generated = 0, n_read = 0;
  double gap_at(double part) const { return gaps[static_cast<size_t>(part * static_cast<double>(gaps.size()))]; }
};

// `clients` that ask again as soon as they have their answer: prompts of n_prompt tokens, answers of n_output.
Served serve(const Machine& machine, int clients, int64_t n_prompt, int64_t n_output, int passes) {
  struct Client {
    int64_t unread, left;
  };
  Pacing pacing(0.25, 2);
  std::vector<Client> all(static_cast<size_t>(clients), Client{n_prompt, n_output});
  Served served;
  for (int i = 0; i < passes; ++i) {
    int64_t n_unread = 0, n_generating = 0, n_read = 0;
    for (const Client& c : all) n_unread += c.unread, n_generating += c.unread == 0;
    const PromptRoom room = pacing.room(n_generating, n_unread, 512);
    int64_t left = room.tokens;
    for (Client& c : all) {
      if (c.unread == 0) {
        ++served.n_generated;
        if (--c.left == 0) c = {n_prompt, n_output};
      } else if (!room.whole_only || c.unread <= left) {
        const int64_t n = std::min(c.unread, left);
        c.unread -= n;
        left -= n;
        n_read += n;
      }
    }
    const double seconds = machine.pass(n_read);
    pacing.took(n_generating, n_read, seconds);
    served.gaps.insert(served.gaps.end(), static_cast<size_t>(n_generating), seconds);
    served.seconds += seconds;
    served.prompt_s += n_read > 0 ? seconds : 0;
    served.n_read += n_read;
  }
  std::sort(served.gaps.begin(), served.gaps.end());
  return served;
}

TEST(Pacing, MostGapsStayShortAndPromptsAreReadInLargePieces) {
  const Machine machine{.plain_s = 0.1, .token_s = 0.005};
  const Served served = serve(machine, 4, 385, 64, 4000);
  EXPECT_LT(served.gap_at(0.95), 0.25);
  EXPECT_LT(served.gaps.back(), 2.1);
  // Of the tokens a second that there would be if each prompt were one piece and all else were generated four at a
  // time.
  const double best = 4 * 64 / (4 * machine.pass(385) + 64 * machine.pass(0));
  EXPECT_GT(static_cast<double>(served.n_generated) / served.seconds, 0.7 * best);
}

TEST(Pacing, WhatFitsWithinAGapIsReadAtOnce) {
  const Machine machine{.plain_s = 0.1, .token_s = 0.005};
  Pacing pacing(0.25, 2);
  for (int i = 0; i < 50; ++i) pacing.took(9, 0, machine.pass(0));
  for (int i = 0; i < 50; ++i) pacing.took(0, 400, machine.pass(400));
  EXPECT_FALSE(pacing.room(9, 25, 512).whole_only);
  EXPECT_GE(pacing.room(9, 25, 512).tokens, 25);
  EXPECT_EQ(pacing.room(0, 5000, 512).tokens, 512) << "nobody waits for a token";
  const PromptRoom longer = pacing.room(9, 5000, 512);
  EXPECT_FALSE(longer.whole_only) << "there was none for long";
  EXPECT_NEAR(static_cast<double>(longer.tokens), 380, 20);
  pacing.took(9, longer.tokens, machine.pass(longer.tokens));
  const PromptRoom next = pacing.room(9, 5000, 512);
  EXPECT_TRUE(next.whole_only);
  EXPECT_NEAR(static_cast<double>(next.tokens), 30, 2) << "short ones go on";
}

TEST(Pacing, ASlowMachineReadsHalfTheTime) {
  const Served served = serve({.plain_s = 0.5, .token_s = 0.05}, 8, 1000, 1000, 4000);
  EXPECT_GT(served.prompt_s, 0.4 * served.seconds);
  EXPECT_LT(served.gaps.back(), 3);
  const Served slower = serve({.plain_s = 3, .token_s = 1}, 2, 100, 1000, 1000);
  EXPECT_GT(slower.n_read, 100) << "it goes on";
}

TEST(Pacing, AFastMachineNeedNotWait) {
  const Served served = serve({.plain_s = 0.001, .token_s = 0.0001}, 20, 300, 50, 4000);
  EXPECT_LT(served.gaps.back(), 0.25);
}

}  // namespace
}  // namespace fathom
