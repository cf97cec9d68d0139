#include "parallel/stage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/rng.h"
#include "parallel/in_process_ranks.h"
#include "parallel/small_model.h"
#include "sanitized.h"

namespace fathom {
namespace {

constexpr uint64_t kSeed = 5;

PipelineStep make_step(const ModelConfig& config, int n_chunks) {
  PipelineStep step;
  Rng rng(3);
  int64_t n_main = 0, n_mtp = 0;
  for (int c = 0; c < n_chunks; ++c) {
    Examples& chunk = step.chunks.emplace_back();
    for (int s = 0; s < 2; ++s) {
      std::vector<int32_t> ids(5 + rng.below(6));
      for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size)));
      add_window(chunk, ids);
    }
    n_main += chunk.n_main;
    n_mtp += count_mtp_targets(chunk.sequences, config.num_nextn_predict_layers);
  }
  step.loss = {.mtp_weight = n_mtp > 0 ? 0.3 : 0,
               .balance_alpha = 0.01,
               .main_scale = 1.0 / static_cast<double>(n_main),
               .mtp_scale = n_mtp > 0 ? 1.0 / static_cast<double>(n_mtp) : 0,
               .balance_scale = 1.0 / (2 * n_chunks)};
  return step;
}

struct Expected {
  LossResult loss;
  Parameters gradients;
};
Expected in_one_process(const ModelConfig& config, const PipelineStep& step, Precision precision = Precision::f32) {
  ThreadPool pool(1);
  Arena arena;
  Context ctx{pool, arena};
  Parameters parameters = allocate_parameters(config);
  initialize(parameters, config, kSeed);
  Expected expected{{}, allocate_parameters(config, false)};
  Model model = make_model(config, parameters.weights);
  model.precision = precision;
  for (const Examples& chunk : step.chunks) {
    const ArenaScope scope(arena);
    const auto [batch, targets] = make_example(ctx, chunk);
    expected.loss += loss_and_gradients(ctx, model, expected.gradients.weights, batch, targets, step.loss);
  }
  return expected;
}

// Gradients by name, summed over the stages that hold them, and the loss of all ranks.
struct Pipelined {
  LossResult loss;
  int64_t bytes_across_nodes = 0;
  std::map<std::string, std::vector<float>> gradients;
  bool operator==(const Pipelined& other) const { return gradients == other.gradients; }
};
// With experts spread over n_expert_ranks, each of which has a pipeline and a part of the step's chunks of its own.
Pipelined in_a_pipeline(const ModelConfig& config, const PipelineSchedule& schedule, const PipelineStep& step,
                        int n_expert_ranks = 1, int ranks_per_node = 1, Precision precision = Precision::f32) {
  const int n_ranks = schedule.n_ranks * n_expert_ranks;
  std::vector<std::vector<Stage>> stages(static_cast<size_t>(n_ranks));
  std::vector<LossResult> losses(stages.size());
  std::vector<Traffic> traffic(stages.size());
  test::on_ranks(n_ranks, [&](Communicator& comm) {
    ThreadPool pool(1);
    const int place = comm.rank() / n_expert_ranks, column = comm.rank() % n_expert_ranks;
    std::vector<int> pipeline, row;
    for (int r = 0; r < n_ranks; ++r) {
      if (r % n_expert_ranks == column) pipeline.push_back(r);
      if (r / n_expert_ranks == place) row.push_back(r);
    }
    std::optional<ExpertGroup> experts;
    if (n_expert_ranks > 1) experts = make_expert_group(comm, row, ranks_per_node, 0);
    std::vector<Stage>& own = stages[static_cast<size_t>(comm.rank())];
    for (int d = 0; d < schedule.n_directions(); ++d) {
      own.push_back(
          make_stage(config, schedule.n_stages(), schedule.stage_of(place, d), experts ? &*experts : nullptr));
      initialize(own.back().parameters, config, kSeed);
      own.back().model.precision = precision;
    }
    PipelineStep part{{}, step.loss};
    const auto first = step.chunks.begin() + column * schedule.n_chunks;
    part.chunks.assign(first, first + schedule.n_chunks);
    StageWork work(pool, schedule, own, part);
    // What is told to be final is that of the end.
    struct Final {
      std::span<const float> now;
      std::vector<float> then;
    };
    std::vector<Final> all_final;
    int n_whole = 0;
    work.tell_final([&](int d, int64_t layer) {
      const Parameters& gradients = own[static_cast<size_t>(d)].gradients;
      const auto from = [&](Tensor at_first, int64_t end) {
        const std::span<const float> all = gradients.trained();
        const auto begin = at_first ? at_first.f32() - all.data() : end;
        const auto now = all.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
        all_final.push_back({now, {now.begin(), now.end()}});
      };
      const ModelWeights& w = gradients.weights;
      n_whole += layer < 0 ? 1 : 0;
      if (layer < 0) return from(Tensor(gradients.trained().data(), Format::f32, {1}), gradients.n_trained);
      const bool behind = layer == own[static_cast<size_t>(d)].part.end_layer;
      const LayerWeights none, &at = behind ? none : w.layers[static_cast<size_t>(layer)];
      from(behind ? w.norm : at.input_norm, gradients.experts_begin);
      if (at.moe.gate) from(at.moe.gate_up, gradients.n_trained);
      if (behind && !w.mtp.empty()) from(w.mtp[0].layer.moe.gate_up, gradients.n_trained);
    });
    run_pipeline(make_group(comm, pipeline, 0), schedule, work.work(), {});
    EXPECT_EQ(n_whole, schedule.n_directions());
    for (const Final& stretch : all_final) EXPECT_TRUE(std::ranges::equal(stretch.now, stretch.then));
    losses[static_cast<size_t>(comm.rank())] = work.result();
    traffic[static_cast<size_t>(comm.rank())] = work.traffic();
  });
  Pipelined pipelined;
  for (const LossResult& loss : losses) pipelined.loss += loss;
  for (const Traffic& of_rank : traffic) pipelined.bytes_across_nodes += of_rank.across_nodes;
  for (const auto& of_rank : stages) {
    for (const Stage& stage : of_rank) {
      for_each_tensor(stage.gradients.weights, config, [&](const NamedTensor& named) {
        std::vector<float>& sum = pipelined.gradients[named.name];
        sum.resize(static_cast<size_t>(named.view.size()));
        for (int64_t r = 0; r < named.view.rows(); ++r) {
          for (int64_t i = 0; i < named.view.cols(); ++i) {
            sum[static_cast<size_t>(r * named.view.cols() + i)] += named.view.f32_row(r)[i];
          }
        }
      });
    }
  }
  return pipelined;
}

// Largest difference of a tensor over its largest element.
double difference(const Pipelined& ours, const Expected& expected, const ModelConfig& config) {
  double worst = 0;
  size_t n = 0;
  for_each_tensor(expected.gradients.weights, config, [&](const NamedTensor& named) {
    ++n;
    const std::vector<float>& of_ours = ours.gradients.at(named.name);
    double largest = 1e-12, most = 0;
    for (int64_t r = 0; r < named.view.rows(); ++r) {
      for (int64_t i = 0; i < named.view.cols(); ++i) {
        const double theirs = named.view.f32_row(r)[i];
        largest = std::max(largest, std::abs(theirs));
        const double apart = std::abs(of_ours[static_cast<size_t>(r * named.view.cols() + i)] - theirs);
        most = std::isfinite(apart) ? std::max(most, apart) : HUGE_VAL;
      }
    }
    worst = std::max(worst, most / largest);
  });
  EXPECT_EQ(n, ours.gradients.size());
  return worst;
}

// Length of the difference over that of the whole gradient.
double relative_distance(const Pipelined& ours, const Expected& expected, const ModelConfig& config) {
  double distance = 0, length = 0;
  for_each_tensor(expected.gradients.weights, config, [&](const NamedTensor& named) {
    const std::vector<float>& of_ours = ours.gradients.at(named.name);
    for (int64_t r = 0; r < named.view.rows(); ++r) {
      for (int64_t i = 0; i < named.view.cols(); ++i) {
        const double theirs = named.view.f32_row(r)[i];
        distance += std::pow(of_ours[static_cast<size_t>(r * named.view.cols() + i)] - theirs, 2);
        length += theirs * theirs;
      }
    }
  });
  return std::sqrt(distance / length);
}

TEST(Stage, LayersAreSpreadEvenly) {
  const ModelConfig config = small_config(7, 1);
  int64_t next = 0;
  for (int s = 0; s < 3; ++s) {
    const WeightPart part = stage_part(config, 3, s);
    EXPECT_EQ(part.first_layer, next);
    next = part.end_layer;
    EXPECT_EQ(part.end_layer - part.first_layer, s == 0 ? 3 : 2);
    EXPECT_EQ(part.embed, s != 1);
    EXPECT_EQ(part.head, s == 2);
  }
  EXPECT_EQ(next, 7);
  EXPECT_THROW(stage_part(config, 8, 0), Error);
}

TEST(Stage, PartsAreBegunLikeTheWhole) {
  const ModelConfig config = small_config(4, 1);
  Parameters whole = allocate_parameters(config);
  initialize(whole, config, kSeed);
  std::map<std::string, float> first;
  for_each_tensor(whole.weights, config,
                  [&](const NamedTensor& t) { first[t.name] = t.view.f32()[t.view.size() - 1]; });
  size_t n = 0;
  for (int s = 0; s < 4; ++s) {
    Stage stage = make_stage(config, 4, s);
    initialize(stage.parameters, config, kSeed);
    for_each_tensor(stage.parameters.weights, config, [&](const NamedTensor& t) {
      ++n;
      EXPECT_EQ(t.view.f32()[t.view.size() - 1], first.at(t.name)) << t.name;
    });
  }
  EXPECT_EQ(n, first.size() + 1) << "the embedding is at both ends";
}

void expect_equal(const Pipelined& ours, const Expected& expected, const ModelConfig& config) {
  EXPECT_NEAR(ours.loss.loss(), expected.loss.loss(), 1e-6 * expected.loss.loss());
  EXPECT_NEAR(ours.loss.mtp_loss(), expected.loss.mtp_loss(), 1e-6 * expected.loss.mtp_loss());
  EXPECT_NEAR(ours.loss.balance_loss, expected.loss.balance_loss, 1e-6 * expected.loss.balance_loss);
  EXPECT_EQ(ours.loss.main_targets, expected.loss.main_targets);
  EXPECT_EQ(ours.loss.mtp_targets, expected.loss.mtp_targets);
  EXPECT_EQ(ours.loss.expert_load, expected.loss.expert_load);
  EXPECT_LE(difference(ours, expected, config), 1e-5);
}

TEST(Stage, ExpertsOnOtherRanksGiveTheSame) {
  int n = 0;
  for (const auto& [name, kind] : kScheduleKinds) {
    for (const auto& [ranks, expert_ranks, per_node] :
         {std::array{1, 2, 2}, std::array{1, 4, 4}, std::array{1, 4, 2}, std::array{1, 8, 2}, std::array{2, 2, 1},
          std::array{2, 4, 2}, std::array{4, 2, 2}}) {
      if (kind == ScheduleKind::dualpipe && ranks == 1) continue;
      if (test::kSanitized && n++ % 3 != 0) continue;
      const ModelConfig config =
          small_config(kind == ScheduleKind::dualpipev ? 2 * ranks : std::max(ranks, 2), ranks % 2);
      SCOPED_TRACE(std::string(name) + " on " + std::to_string(ranks) + " x " + std::to_string(expert_ranks));
      const PipelineSchedule schedule = make_schedule(kind, ranks, 2 * ranks);
      const PipelineStep step = make_step(config, schedule.n_chunks * expert_ranks);
      const Pipelined ours = in_a_pipeline(config, schedule, step, expert_ranks, per_node);
      expect_equal(ours, in_one_process(config, step), config);
      EXPECT_TRUE(in_a_pipeline(config, schedule, step, expert_ranks, per_node) == ours)
          << "other bits the second time";
    }
  }
}

// Rows are on their way between all of them.
TEST(Stage, AnErrorEndsAllWhileRowsAreOnTheirWay) {
  constexpr int kRanks = 4;
  const ModelConfig config = small_config(4, 1);
  const PipelineStep step = make_step(config, 8 * kRanks);
  const PipelineSchedule schedule = make_schedule(ScheduleKind::one_f_one_b, 1, 8);
  for (int n_before = 0; n_before < 12; ++n_before) {
    const auto job = [&] {
      test::on_ranks(kRanks, [&](Communicator& comm) {
        ThreadPool pool(1);
        const ExpertGroup experts = make_expert_group(comm, {0, 1, 2, 3}, 2, 0);
        std::vector<Stage> stages;
        stages.push_back(make_stage(config, 1, 0, &experts));
        initialize(stages[0].parameters, config, kSeed);
        PipelineStep part{{}, step.loss};
        const auto first = step.chunks.begin() + comm.rank() * 8;
        part.chunks.assign(first, first + 8);
        StageWork work(pool, schedule, stages, part);
        PipelineWork broken = work.work();
        int n = 0;
        broken.end_chunk = [&, end = broken.end_chunk](ChunkPass p) {
          end(p);
          if (comm.rank() == 2 && ++n > n_before / 2) throw Error("no luck");
        };
        if (n_before % 2 > 0) {
          work.tell_final([&](int, int64_t layer) {
            if (comm.rank() == 2 && layer == n_before / 4) throw Error("no luck");
          });
        }
        run_pipeline(make_group(comm, {comm.rank()}, 0), schedule, broken, {});
      });
    };
    EXPECT_THROW(job(), Error);
  }
}

// A token's row crosses once to each other node that has one of its experts, whatever their number there, and comes
// back as one sum; so it is with the gradients. Fewer groups a token, fewer nodes.
TEST(Stage, RowsCrossNodesOnceEach) {
  const PipelineSchedule schedule = make_schedule(ScheduleKind::one_f_one_b, 1, 2);
  int64_t bytes_before = 0;
  for (const int64_t topk_group : {1, 2, 4}) {
    ModelConfig config = small_config(3, 0);
    config.router.topk_group = topk_group;
    config.router.num_experts_per_tok = 2;
    const PipelineStep step = make_step(config, 16);
    constexpr int kRanks = 8, kPerNode = 2;  // four nodes with a group each
    const int64_t per_node = config.router.n_routed_experts / (kRanks / kPerNode),
                  k = config.router.num_experts_per_tok;

    ThreadPool pool(1);
    Arena arena;
    Context ctx{pool, arena};
    Parameters parameters = allocate_parameters(config);
    initialize(parameters, config, kSeed);
    const Model model = make_model(config, parameters.weights);
    int64_t crossings = 0;
    for (size_t c = 0; c < step.chunks.size(); ++c) {
      const int64_t own_node = static_cast<int64_t>(c) / schedule.n_chunks / kPerNode;
      const LayerVisit visit = [&](int64_t, const LayerSaved& layer) {
        for (int64_t t = 0; layer.moe.topk_ids && t < layer.moe.topk_ids.rows(); ++t) {
          std::set<int64_t> nodes;
          for (int64_t i = 0; i < k; ++i) nodes.insert(layer.moe.topk_ids.i32()[t * k + i] / per_node);
          EXPECT_LE(std::ssize(nodes), topk_group);
          crossings += std::ssize(nodes) - (nodes.contains(own_node) ? 1 : 0);
        }
      };
      forward(ctx, model, make_example(ctx, step.chunks[c]).batch, {.on_layer = &visit});
    }
    // There with weights and ids of experts, back; gradients there, and back with those of the weights.
    const int64_t floats =
        (config.hidden_size + 2 * k) + config.hidden_size + config.hidden_size + config.hidden_size + k;
    const int64_t bytes = in_a_pipeline(config, schedule, step, kRanks, kPerNode).bytes_across_nodes;
    EXPECT_EQ(bytes, crossings * floats * 4);
    EXPECT_GT(bytes, bytes_before);
    bytes_before = bytes;
  }
}

// In FP8 and bf16 rows travel as products round them; only sums on the way back are rounded besides.
TEST(Stage, NarrowRowsChangeLittle) {
  const ModelConfig config = small_config(2, 1);
  const PipelineSchedule schedule = make_schedule(ScheduleKind::one_f_one_b, 1, 2);
  const PipelineStep step = make_step(config, 8);
  for (const Precision precision : {Precision::bf16, Precision::fp8, Precision::fp8_per_tensor}) {
    const Expected expected = in_one_process(config, step, precision);
    const Pipelined ours = in_a_pipeline(config, schedule, step, 4, 2, precision);
    EXPECT_NEAR(ours.loss.loss(), expected.loss.loss(), 2e-3 * expected.loss.loss());
    // Here and there another expert is chosen.
    EXPECT_LE(relative_distance(ours, expected, config), 0.1);
    EXPECT_NE(ours.loss.loss(), in_one_process(config, step).loss.loss()) << "it is not f32 that was compared";
  }
}

// Whether experts are spread or not, and where the weights' part of a backward pass stands far behind the input's.
TEST(Stage, RecomputingChangesNoBit) {
  for (const auto& [kind, ranks, expert_ranks, precision] :
       {std::tuple(ScheduleKind::one_f_one_b, 1, 1, Precision::f32),
        {ScheduleKind::zb1p, 2, 1, Precision::f32},
        {ScheduleKind::dualpipe, 2, 2, Precision::f32},
        {ScheduleKind::dualpipev, 2, 4, Precision::bf16},
        {ScheduleKind::zb1p, 2, 2, Precision::fp8},
        {ScheduleKind::dualpipe, 2, 1, Precision::fp8}}) {
    const ModelConfig config = small_config(5, 1);
    SCOPED_TRACE(fmt::format("schedule {} on {} x {}", static_cast<int>(kind), ranks, expert_ranks));
    const PipelineSchedule schedule = make_schedule(kind, ranks, 3 * ranks + 3 * ranks % 2);
    PipelineStep step = make_step(config, schedule.n_chunks * expert_ranks);
    const Pipelined expected = in_a_pipeline(config, schedule, step, expert_ranks, 1, precision);
    for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
      step.loss.recompute = recompute;
      const Pipelined ours = in_a_pipeline(config, schedule, step, expert_ranks, 1, precision);
      EXPECT_TRUE(ours == expected) << static_cast<int>(recompute);
      EXPECT_EQ(ours.loss.loss_sum, expected.loss.loss_sum);
      EXPECT_EQ(ours.loss.expert_load, expected.loss.expert_load);
    }
  }
}

TEST(Stage, EveryScheduleGivesTheGradientsOfOneProcess) {
  for (const auto& [name, kind] : kScheduleKinds) {
    for (const int ranks : {1, 2, 4}) {
      if (kind == ScheduleKind::dualpipe && ranks == 1) continue;
      const ModelConfig config = small_config(kind == ScheduleKind::dualpipev ? 2 * ranks : std::max(ranks, 3), 2);
      SCOPED_TRACE(std::string(name) + " on " + std::to_string(ranks));
      const PipelineSchedule schedule = make_schedule(kind, ranks, 2 * ranks);
      const PipelineStep step = make_step(config, schedule.n_chunks);
      const Expected expected = in_one_process(config, step);
      const Pipelined ours = in_a_pipeline(config, schedule, step);
      expect_equal(ours, expected, config);
      EXPECT_TRUE(in_a_pipeline(config, schedule, step) == ours) << "other bits the second time";
    }
  }
}

}  // namespace
}  // namespace fathom
