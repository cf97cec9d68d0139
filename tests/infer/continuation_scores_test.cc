// Whatever is scored together, a continuation's log probability is the sum of those that the logits give its tokens.
#include "infer/continuation_scores.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"
#include "infer/bytes_machine.h"
#include "infer/score.h"
#include "ops/log_softmax.h"
#include "refusal.h"

namespace fathom {
namespace {

std::vector<int32_t> random_ids(Rng& rng, uint64_t n, int64_t vocab) {
  std::vector<int32_t> ids;
  for (uint64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  return ids;
}

ContinuationScore by_logits(BytesMachine& machine, const std::vector<int32_t>& context,
                            const std::vector<int32_t>& continuation) {
  std::vector<std::vector<int32_t>> sequences{context};
  sequences[0].insert(sequences[0].end(), continuation.begin(), continuation.end());
  ContinuationScore score{0, true};
  for_each_group(machine.ctx, sequences, 1, [&](const Batch& batch) {
    const Tensor logits = head_logits(machine.ctx, machine.model, forward(machine.ctx, machine.model, batch));
    for (size_t i = 0; i < continuation.size(); ++i) {
      const auto row = static_cast<int64_t>(context.size() + i) - 1;
      const LogSoftmax log_softmax({logits.f32_row(row), static_cast<size_t>(logits.cols())});
      score.logprob += log_softmax[continuation[i]];
      score.greedy &= log_softmax.best == continuation[i];
    }
  });
  return score;
}

TEST(ContinuationScores, AreThoseOfTheLogitsWhateverIsScoredTogether) {
  BytesMachine machine(1024, tiny_v3());
  const int64_t vocab = machine.model.config.vocab_size;
  Rng rng(7);
  // Contexts that begin alike for 0, 1, a page's 64, and 150 tokens, and one that is another's beginning.
  const std::vector<int32_t> shared = random_ids(rng, 150, vocab);
  std::vector<ScoredContinuations> elements;
  for (const int64_t n : {0, 1, 64, 64, 65, 150, 150, 150}) {
    ScoredContinuations element{{shared.begin(), shared.begin() + n}};
    const std::vector<int32_t> own = random_ids(rng, 1 + rng.below(140), vocab);
    element.context.insert(element.context.end(), own.begin(), own.end());
    for (uint64_t c = 0; c < 1 + rng.below(4); ++c) {
      element.continuations.push_back(random_ids(rng, rng.below(3) == 0 ? 1 : 1 + rng.below(90), vocab));
    }
    elements.push_back(std::move(element));
  }
  elements.push_back({{shared.begin(), shared.begin() + 100}, {{shared[100]}, {shared[100], shared[101]}}});
  elements.push_back({{shared[0]}, {{shared.begin() + 1, shared.begin() + 120}}});

  std::vector<int> told(elements.size());
  score_continuations(machine.ctx, machine.model, elements, [&](size_t e, std::span<const ContinuationScore> scores) {
    ++told[e];
    ASSERT_EQ(scores.size(), elements[e].continuations.size());
    for (size_t c = 0; c < scores.size(); ++c) {
      const ContinuationScore wanted = by_logits(machine, elements[e].context, elements[e].continuations[c]);
      EXPECT_NEAR(scores[c].logprob, wanted.logprob, 1e-4) << e << " " << c;
      EXPECT_EQ(scores[c].greedy, wanted.greedy) << e << " " << c;
    }
  });
  EXPECT_EQ(told, std::vector<int>(elements.size(), 1));
}

TEST(ContinuationScores, WhatTheModelWouldWriteIsGreedy) {
  BytesMachine machine(1024, tiny_v3());
  const std::vector<int32_t> context{1, 2, 3};
  std::vector<int32_t> greedy;
  for (int i = 0; i < 3; ++i) {
    std::vector<std::vector<int32_t>> sequences{context};
    sequences[0].insert(sequences[0].end(), greedy.begin(), greedy.end());
    for_each_group(machine.ctx, sequences, 1, [&](const Batch& batch) {
      const Tensor logits = head_logits(machine.ctx, machine.model, forward(machine.ctx, machine.model, batch));
      const LogSoftmax last({logits.f32_row(logits.rows() - 1), static_cast<size_t>(logits.cols())});
      greedy.push_back(static_cast<int32_t>(last.best));
    });
  }
  std::vector<int32_t> other = greedy;
  other[1] = (other[1] + 1) % 100;
  const std::vector<ScoredContinuations> elements{{context, {greedy, other}}};
  score_continuations(machine.ctx, machine.model, elements, [&](size_t, std::span<const ContinuationScore> scores) {
    EXPECT_TRUE(scores[0].greedy);
    EXPECT_FALSE(scores[1].greedy);
    EXPECT_GT(scores[0].logprob, scores[1].logprob);
  });
}

TEST(ContinuationScores, WhatCannotBeReadIsRefused) {
  BytesMachine machine(1024, tiny_v3());
  const auto vocab = static_cast<int32_t>(machine.model.config.vocab_size);
  const std::vector<int32_t> long_one(static_cast<size_t>(machine.model.config.max_position_embeddings), 1);
  const auto said = [&](const ScoredContinuations& element) {
    return refusal([&] {
      score_continuations(machine.ctx, machine.model, std::span(&element, 1),
                          [](size_t, std::span<const ContinuationScore>) {});
    });
  };
  EXPECT_NE(said({{}, {{1}}}).find("empty context"), std::string::npos);
  EXPECT_NE(said({{1}, {{}}}).find("empty continuation"), std::string::npos);
  EXPECT_NE(said({{1}, {{vocab}}}).find("outside the vocabulary"), std::string::npos);
  EXPECT_NE(said({long_one, {{1, 2}}}).find("more than the model's context"), std::string::npos);
}

TEST(ContinuationScores, AnInterruptionEndsTheWork) {
  BytesMachine machine(1024, tiny_v3());
  const std::vector<ScoredContinuations> elements{{{1, 2}, {{3}}}, {{4, 5}, {{6}}}};
  int told = 0;
  score_continuations(
      machine.ctx, machine.model, elements, [&](size_t, std::span<const ContinuationScore>) { ++told; },
      [] { return true; });
  EXPECT_EQ(told, 0);
}

}  // namespace
}  // namespace fathom
