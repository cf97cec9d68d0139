// What is not finite, wherever it comes up in a step, is seen in the step's loss or gradient, and changes no state.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "base/rng.h"
#include "model/loss.h"
#include "model/tiny_models.h"
#include "ops/adamw.h"
#include "sanitized.h"
#include "train/balance.h"
#include "train/guard.h"
#include "train/options.h"

namespace fathom {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

// Two sequences and the gradient of their loss.
struct Step {
  explicit Step(Precision precision) : gradients(allocate_parameters(config, false)) {
    initialize(parameters, config, 1);
    model = make_model(config, parameters.weights);
    model.precision = precision;
    Rng rng(2);
    for (auto& sequence : sequences) {
      for (int i = 0; i < 20; ++i) sequence.push_back(static_cast<int32_t>(rng.below(37)));
    }
  }
  LossResult run() {
    const ArenaScope scope(arena);
    std::ranges::fill(gradients.all(), 0.0F);
    const Batch batch = make_batch(ctx, sequences);
    return loss_and_gradients(ctx, model, gradients.weights, batch, make_targets(ctx, batch), {.mtp_weight = 0.3});
  }
  std::string why_skipped(const LossResult& loss) {
    if (!biases_are_finite(parameters.weights)) return "a bias";
    return reason_to_skip({}, loss.loss(), loss.mtp_loss(), std::sqrt(sum_of_squares(ctx, gradients.trained())), 10);
  }

  ModelConfig config = tiny_v3();
  Parameters parameters = allocate_parameters(config), gradients;
  Model model;
  std::vector<std::vector<int32_t>> sequences{2};
  ThreadPool pool{1};
  Arena arena;
  Context ctx{pool, arena};
};

std::vector<Precision> precisions() {
  if (test::kSanitized) return {Precision::bf16, Precision::fp8};
  return {Precision::f32, Precision::bf16, Precision::fp8, Precision::fp8_per_tensor};
}

// Of each tensor, correction biases among them, two numbers become NaN or infinite, which then are in the activations,
// their scales and the gradients behind them. Those that the step does not read (rows of tokens and experts that are
// not in it) change no bit of it.
TEST(NotFinite, IsSeenInTheStepWhereverItComesUp) {
  for (const Precision precision : precisions()) {
    Step step(precision);
    const LossResult whole = step.run();
    ASSERT_EQ(step.why_skipped(whole), "");
    const std::vector<float> gradient(step.gradients.trained().begin(), step.gradients.trained().end());
    Rng rng(3);
    int seen = 0, unread = 0;
    for_each_tensor(step.parameters.weights, step.config, [&](const NamedTensor& named) {
      for (int i = 0; i < (test::kSanitized ? 1 : 2); ++i) {
        const auto row = static_cast<int64_t>(rng.below(static_cast<uint64_t>(named.view.rows())));
        float& number = named.view.f32_row(row)[rng.below(static_cast<uint64_t>(named.view.cols()))];
        const float before = number;
        for (const float value : {kNan, kInfinity, -kInfinity}) {
          number = value;
          const LossResult loss = step.run();
          if (!step.why_skipped(loss).empty()) {
            ++seen;
            continue;
          }
          ++unread;
          EXPECT_TRUE(loss.loss() == whole.loss() && loss.mtp_loss() == whole.mtp_loss() &&
                      std::ranges::equal(step.gradients.trained(), gradient))
              << precision_name(precision) << ": " << value << " in " << named.name << " is not seen";
        }
        number = before;
      }
    });
    std::printf("%s: %d seen, %d not read by the step\n", precision_name(precision), seen, unread);
    EXPECT_GT(seen, 5 * unread);
  }
}

// Numbers so large that what follows overflows: the step is skipped, or it is not a step of zeros.
TEST(NotFinite, WhatOverflowsIsSeen) {
  int seen = 0;
  for (const Precision precision : precisions()) {
    Step step(precision);
    for_each_tensor(step.parameters.weights, step.config, [&](const NamedTensor& named) {
      if (!named.trained) return;
      float& number = named.view.f32_row(0)[0];
      const float before = number;
      for (const float value : {1e15F, -1e25F, 3e38F}) {
        number = value;
        const LossResult loss = step.run();
        if (!step.why_skipped(loss).empty()) {
          ++seen;
          continue;
        }
        EXPECT_GT(sum_of_squares(step.ctx, step.gradients.trained()), 0) << named.name << " " << value;
        EXPECT_NE(loss.loss(), std::log(37.0)) << named.name << " " << value << ": every token as likely";
      }
      number = before;
    });
  }
  EXPECT_GT(seen, 100);
}

TEST(NotFinite, IsSeenAnywhereInAGradient) {
  ThreadPool pool(2);
  Arena arena;
  Context ctx{pool, arena};
  std::vector<float> gradient(70'000, 1.0F);
  const auto skipped = [&] { return !reason_to_skip({}, 1, 1, std::sqrt(sum_of_squares(ctx, gradient)), 10).empty(); };
  EXPECT_FALSE(skipped());
  for (size_t i = 0; i < gradient.size(); i += i < 300 || i + 300 > gradient.size() ? 1 : 997) {
    for (const float value : {kNan, kInfinity, -kInfinity}) {
      gradient[i] = value;
      EXPECT_TRUE(skipped()) << value << " at " << i;
    }
    gradient[i] = 1;
  }
}

}  // namespace
}  // namespace fathom
