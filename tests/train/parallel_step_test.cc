#include "train/parallel_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>
#include <mutex>

#include "base/error.h"
#include "base/rng.h"
#include "ops/adamw.h"
#include "parallel/in_process_ranks.h"
#include "parallel/small_model.h"
#include "sanitized.h"
#include "train/balance.h"
#include "train/memory_check.h"

namespace fathom {
namespace {

constexpr uint64_t kSeed = 11;
constexpr int kSteps = 3, kSequences = 16;
constexpr UpdateOptions kUpdate{.lr = 0.01,
                                .weight_decay = 0.1,
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = 1e-8,
                                .gradient_scale = 0.5,
                                .bias_update_speed = 0.01};

ModelConfig config_of_test(int64_t n_layers = 8) {
  ModelConfig c = small_config(n_layers, 1);
  c.vocab_size = 40;
  c.router.num_experts_per_tok = 2;
  return c;
}

// A sequence a chunk.
PipelineStep make_step(const ModelConfig& config, int step) {
  PipelineStep made;
  Rng rng(100 + static_cast<uint64_t>(step));
  int64_t n_main = 0, n_mtp = 0;
  for (int i = 0; i < kSequences; ++i) {
    std::vector<int32_t> ids(9);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size)));
    add_window(made.chunks.emplace_back(), ids);
    n_main += made.chunks.back().n_main;
    n_mtp += count_mtp_targets(made.chunks.back().sequences, 1);
  }
  made.loss = {.mtp_weight = 0.3,
               .balance_alpha = 0.01,
               .main_scale = 1.0 / static_cast<double>(n_main),
               .mtp_scale = 1.0 / static_cast<double>(n_mtp),
               .balance_scale = 1.0 / kSequences};
  return made;
}

struct Trained {
  std::vector<double> losses, norms;
  std::map<std::string, std::vector<float>> weights;
  std::map<std::string, std::vector<float>> gradients;  // of the first step
};
void add_weights(Trained& trained, const Parameters& parameters, const ModelConfig& config) {
  for_each_tensor(parameters.weights, config, [&](const NamedTensor& named) {
    std::vector<float> values;
    for (int64_t r = 0; r < named.view.rows(); ++r) {
      values.insert(values.end(), named.view.f32_row(r), named.view.f32_row(r) + named.view.cols());
    }
    const auto [at, is_new] = trained.weights.emplace(named.name, values);
    if (!is_new) {
      EXPECT_EQ(at->second, values) << named.name << ": ranks that hold it differ";
    }
  });
}

// Of the elements that are `own`, [flat index among the trained ones]; each has one owner.
void add_gradients(Trained& trained, const Parameters& gradients, const ModelConfig& config,
                   const std::vector<bool>& own) {
  const float* const first = gradients.trained().data();
  for_each_tensor(gradients.weights, config, [&](const NamedTensor& named) {
    std::vector<float>& values = trained.gradients[named.name];
    values.resize(static_cast<size_t>(named.view.size()), NAN);
    for (int64_t r = 0; r < named.view.rows(); ++r) {
      for (int64_t i = 0; i < named.view.cols(); ++i) {
        const float* const at = named.view.f32_row(r) + i;
        if (!own[static_cast<size_t>(at - first)]) continue;
        float& value = values[static_cast<size_t>(r * named.view.cols() + i)];
        EXPECT_TRUE(std::isnan(value)) << named.name << ": two ranks own it";
        value = *at;
      }
    }
  });
}
// What a rank has summed.
void add_gradients(Trained& trained, const RankState& state) {
  for (size_t d = 0; d < state.stages.size(); ++d) {
    const Parameters& gradients = state.stages[d].gradients;
    std::vector<bool> own(gradients.trained().size(), false);
    for (const Region& region : state.regions) {
      if (region.direction != d) continue;
      const auto begin = own.begin() + static_cast<ptrdiff_t>(region.begin);
      std::fill(begin + static_cast<ptrdiff_t>(region.own.begin), begin + static_cast<ptrdiff_t>(region.own.end), true);
    }
    add_gradients(trained, gradients, state.config, own);
  }
}

// Largest difference of a gradient from the expected one, over its largest element.
double worst_difference(const Trained& ours, const Trained& expected) {
  EXPECT_EQ(ours.gradients.size(), expected.gradients.size());
  double worst = 0;
  for (const auto& [name, values] : expected.gradients) {
    const std::vector<float>& own = ours.gradients.at(name);
    EXPECT_EQ(own.size(), values.size()) << name;
    double largest = 0, difference = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_FALSE(std::isnan(own[i])) << name << ": nobody has it";
      largest = std::max(largest, std::abs(double{values[i]}));
      difference = std::max(difference, std::abs(double{own[i]} - double{values[i]}));
    }
    if (largest > 0) worst = std::max(worst, difference / largest);
  }
  return worst;
}

Trained in_one_process(const ModelConfig& config) {
  ThreadPool pool(1);
  Arena arena;
  Context ctx{pool, arena};
  Parameters parameters = allocate_parameters(config), gradients = allocate_parameters(config, false);
  initialize(parameters, config, kSeed);
  const Moment m = allocate_moment(parameters.n_trained, Format::f32),
               v = allocate_moment(parameters.n_trained, Format::f32);
  Model model = make_model(config, parameters.weights);
  Trained trained;
  for (int step = 1; step <= kSteps; ++step) {
    const PipelineStep batch = make_step(config, step);
    std::fill(gradients.all().begin(), gradients.all().end(), 0.0f);
    LossResult loss;
    for (const Examples& chunk : batch.chunks) {
      const ArenaScope scope(arena);
      const auto [ids, targets] = make_example(ctx, chunk);
      loss += loss_and_gradients(ctx, model, gradients.weights, ids, targets, batch.loss);
    }
    trained.losses.push_back(loss.loss());
    trained.norms.push_back(std::sqrt(sum_of_squares(ctx, gradients.trained())));
    if (step == 1) add_gradients(trained, gradients, config, std::vector<bool>(gradients.trained().size(), true));
    for (const DecayRun& run : decay_runs(parameters, config)) {
      const AdamwConfig adamw{static_cast<float>(kUpdate.lr), static_cast<float>(kUpdate.beta1),
                              static_cast<float>(kUpdate.beta2), static_cast<float>(kUpdate.eps),
                              static_cast<float>(run.decays ? kUpdate.weight_decay : 0)};
      const auto at = static_cast<int64_t>(run.begin), n = static_cast<int64_t>(run.size);
      adamw_step(ctx, adamw, step, parameters.trained().subspan(run.begin, run.size),
                 gradients.trained().subspan(run.begin, run.size), m.values.columns(at, n), v.values.columns(at, n),
                 static_cast<float>(kUpdate.gradient_scale));
    }
    update_biases(model.weights, loss.expert_load, kUpdate.bias_update_speed);
  }
  add_weights(trained, parameters, config);
  return trained;
}

Trained on_many(const ModelConfig& config, const ParallelLayout& layout) {
  Trained trained;
  std::vector<std::unique_ptr<RankState>> states(static_cast<size_t>(layout.n_ranks()));
  std::mutex mutex;  // of the gradients
  test::on_ranks(static_cast<int>(layout.n_ranks()), [&](Communicator& comm) {
    ThreadPool pool(1);
    const int n_chunks = kSequences / layout.width();
    check_layout(layout, comm.size(), config, kSequences, 1);
    auto& state = states[static_cast<size_t>(comm.rank())];
    state = make_rank_state(comm, layout, config, n_chunks, Format::f32, Precision::f32);
    for (Stage& stage : state->stages) initialize(stage.parameters, config, kSeed);
    for (int step = 1; step <= kSteps; ++step) {
      const PipelineStep whole = make_step(config, step);
      PipelineStep own{{}, whole.loss};
      const auto first = whole.chunks.begin() + state->column * n_chunks;
      own.chunks.assign(first, first + n_chunks);
      const ParallelGradients gradients = parallel_gradients(*state, pool, own);
      if (step == 1) {
        const std::lock_guard lock(mutex);
        add_gradients(trained, *state);
      }
      EXPECT_TRUE(parallel_update(*state, pool, step, gradients.loss.expert_load, kUpdate));
      if (comm.rank() != 0) continue;
      trained.losses.push_back(gradients.loss.loss());
      trained.norms.push_back(gradients.norm);
    }
  });
  for (const auto& state : states) {
    for (const Stage& stage : state->stages) add_weights(trained, stage.parameters, config);
  }
  return trained;
}

std::vector<std::array<int, 3>> layouts_of_up_to_8() {
  std::vector<std::array<int, 3>> layouts;
  for (const int pp : {1, 2, 4, 8}) {
    for (const int ep : {1, 2, 4, 8}) {
      for (const int dp : {1, 2, 4, 8}) {
        if (pp * std::max(ep, dp) <= 8) layouts.push_back({pp, ep, dp});
      }
    }
  }
  return layouts;
}

TEST(ParallelStep, EveryLayoutTrainsLikeOneProcess) {
  const ModelConfig config = config_of_test();
  const Trained expected = in_one_process(config);
  int n = 0;
  for (const auto& [name, kind] : kScheduleKinds) {
    for (const auto& [pp, ep, dp] : layouts_of_up_to_8()) {
      const ParallelLayout layout{pp, ep, dp, ep == 4 ? 2 : 0, kind};
      if (kind == ScheduleKind::dualpipe && pp == 1) continue;
      if (kind >= ScheduleKind::dualpipe && kSequences / layout.width() < 2 * pp) continue;
      if (kind == ScheduleKind::dualpipev && 2 * pp > config.num_hidden_layers) continue;
      SCOPED_TRACE(fmt::format("{} pp {} ep {} dp {}", name, pp, ep, dp));
      if (++n % 8 != 0 && test::kSanitized) continue;
      const Trained ours = on_many(config, layout);
      for (int i = 0; i < kSteps; ++i) {
        const auto at = static_cast<size_t>(i);
        EXPECT_NEAR(ours.losses[at], expected.losses[at], 1e-5 * expected.losses[at]);
        EXPECT_NEAR(ours.norms[at], expected.norms[at], 1e-5 * expected.norms[at]);
      }
      EXPECT_LE(worst_difference(ours, expected), 1e-5);
      ASSERT_EQ(ours.weights.size(), expected.weights.size());
      for (const auto& [tensor, values] : expected.weights) {
        EXPECT_THAT(ours.weights.at(tensor), testing::Pointwise(testing::FloatNear(2e-3f), values)) << tensor;
      }
    }
  }
  EXPECT_GE(n, 100);
  for (const ParallelLayout& twice : {ParallelLayout{2, 2, 4, 0, ScheduleKind::dualpipe},
                                      {1, 4, 8, 2, ScheduleKind::one_f_one_b},
                                      {4, 2, 1, 1, ScheduleKind::zb1p}}) {
    EXPECT_EQ(on_many(config, twice).weights, on_many(config, twice).weights) << "other bits the second time";
  }
}

// With two stages a rank.
TEST(ParallelStep, SixteenStagesTrainLikeOneProcess) {
  const ModelConfig config = config_of_test(16);
  const Trained expected = in_one_process(config), ours = on_many(config, {8, 1, 1, 0, ScheduleKind::dualpipev});
  for (size_t i = 0; i < kSteps; ++i) {
    EXPECT_NEAR(ours.losses[i], expected.losses[i], 1e-5 * expected.losses[i]);
    EXPECT_NEAR(ours.norms[i], expected.norms[i], 1e-5 * expected.norms[i]);
  }
  EXPECT_LE(worst_difference(ours, expected), 1e-5);
}

// Neither loss nor gradient tells of it, and the other ranks do not hold it.
TEST(ParallelStep, ABiasOfOneRankThatIsNotFiniteIsSeenByAll) {
  const ModelConfig config = config_of_test();
  test::on_ranks(4, [&](Communicator& comm) {
    const auto state = make_rank_state(comm, {.pp = 4}, config, 4, Format::f32, Precision::f32);
    EXPECT_TRUE(biases_are_finite(*state));
    if (comm.rank() == 2) {
      const Stage& stage = state->stages[0];
      const auto layer = static_cast<size_t>(stage.part.first_layer);
      stage.model.weights.layers[layer].moe.e_score_correction_bias.f32()[1] = -INFINITY;
    }
    EXPECT_FALSE(biases_are_finite(*state));
  });
}

TEST(ParallelStep, AnyBitOfWhatARankKeepsIsInItsChecksum) {
  const ModelConfig config = config_of_test();
  test::on_ranks(4, [&](Communicator& comm) {
    const ParallelLayout layout{2, 2, 2, 0, ScheduleKind::dualpipe};
    const auto state = make_rank_state(comm, layout, config, 8, Format::f32, Precision::f32);
    for (Stage& stage : state->stages) initialize(stage.parameters, config, kSeed);
    begin_average(*state);
    ThreadPool pool(1);
    const uint64_t sound = state_checksum(pool, *state);
    const auto expect_seen = [&](float& number) {
      const float before = std::exchange(number, number + 1);
      EXPECT_NE(state_checksum(pool, *state), sound);
      number = before;
    };
    for (Stage& stage : state->stages) {
      expect_seen(stage.parameters.all().front());
      expect_seen(stage.parameters.all().back());  // a bias
    }
    for (Region& region : state->regions) {
      expect_seen(region.average.back());
      expect_seen(region.first_moment.values.f32()[0]);
      expect_seen(region.second_moment.values.f32()[region.own.end - region.own.begin - 1]);
    }
    expect_seen(state->bias_averages[1][0]);
    EXPECT_EQ(state_checksum(pool, *state), sound);
  });
}

TEST(ParallelStep, LayoutsThatCannotBeAreRefused) {
  const ModelConfig config = config_of_test();
  const auto refused = [&](const ParallelLayout& layout, int ranks, int64_t sequences = 16, int64_t micro_batch = 1) {
    EXPECT_THROW(check_layout(layout, ranks, config, sequences, micro_batch), UsageError);
  };
  EXPECT_NO_THROW(check_layout({2, 2, 4}, 8, config, 16, 1));
  refused({2, 2, 4}, 4);
  refused({1, 3, 2}, 3);
  refused({1, 3, 3}, 3, 9);                           // 8 experts
  refused({16, 1, 1}, 16);                            // 8 layers
  refused({8, 1, 1, 0, ScheduleKind::dualpipev}, 8);  // 16 stages
  refused({3, 1, 1, 0, ScheduleKind::dualpipe}, 3);
  refused({68'692, 1, 62'525}, 4);  // 2^32 + 4
  refused({1, 1, 4}, 4, 18);
  refused({4, 1, 1, 0, ScheduleKind::dualpipe}, 4, 16, 4);  // 4 chunks
}

}  // namespace
}  // namespace fathom
