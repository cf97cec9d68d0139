// The divergence of two models is what their logits say, computed one token after the other.
#include "infer/divergence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "checkpoint/packed_model.h"
#include "infer/score.h"
#include "model/tiny_models.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kOracle = fs::path(FATHOM_TEST_DATA) / "oracle";

class Divergences : public testing::Test {
 protected:
  Divergences() {
    convert_model(kOracle / "v2_lite_like", scratch_.path() / "packed", *find_recipe("q4_0"), pool_);
    source_ = load_packed_model(kOracle / "v2_lite_like", pool_);
    packed_ = load_packed_model(scratch_.path() / "packed", pool_);
    for (const int64_t n : {70, 1, 2, 900, 600, 700}) {  // several groups, and more than one block of logits
      sequences_.push_back(random_ids(n, source_.config.vocab_size, static_cast<uint64_t>(n)));
    }
  }
  static Model model_of(const PackedModel& packed) { return make_model(packed.config, packed.weights); }
  ScoreResult score_of(const PackedModel& packed) {
    return score(ctx_, model_of(packed), sequences_, {.tensors = true});
  }
  static const std::vector<float>& logits_of(const ScoreResult& result) {
    return std::ranges::find(result.tensors, "logits", &ScoreTensor::name)->values;
  }

  const test::TemporaryDirectory scratch_;
  ThreadPool pool_{2};
  Arena arena_;
  Context ctx_{pool_, arena_};
  PackedModel source_, packed_;
  std::vector<std::vector<int32_t>> sequences_;
};

TEST_F(Divergences, AreWhatTheLogitsSay) {
  const ScoreResult a = score_of(source_), b = score_of(packed_);
  const auto vocab = static_cast<size_t>(source_.config.vocab_size);
  std::vector<long double> kl;
  int64_t same = 0;
  size_t row = 0;
  for (const auto& ids : sequences_) {
    for (size_t t = 0; t < ids.size(); ++t, ++row) {
      if (t + 1 == ids.size()) continue;
      const float *p = logits_of(a).data() + row * vocab, *q = logits_of(b).data() + row * vocab;
      long double p_sum = 0, q_sum = 0, sum = 0;
      for (size_t v = 0; v < vocab; ++v) p_sum += std::exp(static_cast<long double>(p[v]));
      for (size_t v = 0; v < vocab; ++v) q_sum += std::exp(static_cast<long double>(q[v]));
      for (size_t v = 0; v < vocab; ++v) {
        const long double x = std::exp(static_cast<long double>(p[v])) / p_sum;
        sum += x * std::log(x / (std::exp(static_cast<long double>(q[v])) / q_sum));
      }
      kl.push_back(sum);
      same += std::max_element(p, p + vocab) - p == std::max_element(q, q + vocab) - q;
    }
  }
  const Divergence got = diverge(ctx_, predict(ctx_, model_of(source_), sequences_), model_of(packed_), sequences_);
  ASSERT_EQ(got.tokens, std::ssize(kl));
  std::sort(kl.begin(), kl.end());
  long double mean = 0;
  for (const long double x : kl) mean += x / static_cast<long double>(kl.size());
  EXPECT_NEAR(got.kl_mean, mean, 1e-9);
  EXPECT_NEAR(got.kl_median, kl[(kl.size() + 1) / 2 - 1], 1e-9);
  EXPECT_NEAR(got.kl_p99, kl[static_cast<size_t>(std::ceil(0.99 * static_cast<double>(kl.size()))) - 1], 1e-9);
  EXPECT_NEAR(got.kl_max, kl.back(), 1e-9);
  EXPECT_GT(got.kl_mean, 1e-3);
  EXPECT_DOUBLE_EQ(got.same_top_1, static_cast<double>(same) / static_cast<double>(kl.size()));
  EXPECT_NEAR(got.loss, a.loss.loss(), 1e-5);
  EXPECT_NEAR(got.other_loss, b.loss.loss(), 1e-5);
}

TEST_F(Divergences, OfAModelFromItselfAreNone) {
  const Divergence got = diverge(ctx_, predict(ctx_, model_of(packed_), sequences_), model_of(packed_), sequences_);
  EXPECT_EQ(got.kl_max, 0);
  EXPECT_EQ(got.same_top_1, 1);
  EXPECT_EQ(got.loss, got.other_loss);
}

TEST_F(Divergences, DoNotDependOnThreadsAndTellHowFarTheyAre) {
  ThreadPool one(1);
  Context alone{one, arena_};
  std::vector<int64_t> told;
  const Predictions predictions = predict(ctx_, model_of(source_), sequences_);
  const Divergence a = diverge(ctx_, predictions, model_of(packed_), sequences_, [&](int64_t n) { told.push_back(n); });
  const Divergence b = diverge(alone, predict(alone, model_of(source_), sequences_), model_of(packed_), sequences_);
  EXPECT_EQ(a.kl_mean, b.kl_mean);
  EXPECT_EQ(a.other_loss, b.other_loss);
  EXPECT_TRUE(std::ranges::is_sorted(told));
  EXPECT_EQ(told.back(), 2273);
}

}  // namespace
}  // namespace fathom
