// A step of training on many ranks: pipeline stages (pp), experts spread over ranks (ep), sequences spread over ranks
// (dp), and of what several ranks hold each looks after a part of the optimizer's state (ZeRO-1, arXiv 1910.02054).
//
// The ranks are pp places in the pipeline times a width of max(ep, dp) columns: rank = place * width + column. Every
// column has sequences of its own. Experts are spread over ep columns one behind the other, so that they are held
// width / ep times; all else of a stage is the same in every column.
#pragma once

#include <optional>

#include "parallel/stage.h"
#include "train/decay.h"
#include "train/saved_state.h"

namespace fathom {

struct ParallelLayout {
  int pp = 1, ep = 1, dp = 1;
  int ranks_per_node = 0;  // of those that share experts; 0: all of them are on one node
  ScheduleKind schedule = ScheduleKind::one_f_one_b;

  int width() const { return ep > dp ? ep : dp; }
  int64_t n_ranks() const { return int64_t{pp} * width(); }
};
// UsageError, with the rule that is broken, where so many ranks do not make the layout, a model of `config` cannot be
// cut so, or `n_sequences` a step in micro-batches of `micro_batch` do not give every column's pipeline the same
// chunks.
void check_layout(const ParallelLayout& layout, int64_t n_ranks, const ModelConfig& config, int64_t n_sequences,
                  int64_t micro_batch);

// A stretch of a stage's flat trained parameters that `holders` have too: of a layer its experts or all else of it,
// the same of what stands behind the layers, or the embedding. Each of them keeps the optimizer's state of its shard of
// it.
struct Region {
  size_t direction;            // of the stage among RankState::stages
  int64_t layer;               // its gradients are final with those of this layer (StageWork::tell_final)
  size_t begin, size;          // floats
  std::optional<size_t> twin;  // another stage of this rank that begins with the same (the embedding)
  RankGroup holders;
  Shard own;                           // of `size`
  Moment first_moment, second_moment;  // of [own]
  std::vector<float> average;          // of the weights of [own] over the steps; empty without one
};

// What a rank has of the job.
struct RankState {
  ParallelLayout layout;
  ModelConfig config;
  PipelineSchedule schedule;
  int place, column;
  RankGroup all, pipeline;
  std::optional<ExpertGroup> experts;
  std::vector<Stage> stages;  // [direction]
  std::vector<std::vector<DecayRun>> decay;
  std::vector<Region> regions;                    // in an order that all ranks have in common
  std::vector<std::vector<float>> bias_averages;  // [direction]: of the correction biases, as all holders have them

  RankState() = default;
  RankState(const RankState&) = delete;  // stages know where `experts` is
  RankState& operator=(const RankState&) = delete;
};
// Zeroed weights; moments in `moments` (f32 or bf16). n_chunks: of a column's pipeline in a step. Collective.
std::unique_ptr<RankState> make_rank_state(Communicator& comm, const ParallelLayout& layout, const ModelConfig& config,
                                           int n_chunks, Format moments, Precision precision);

// What a step did on this rank, in seconds since `origin_s`, a moment that all ranks have in common.
struct StepTrace {
  double origin_s = 0;
  PipelineTrace pipeline{};
  std::vector<Traffic::Message> messages{};  // by monotonic_s()
  struct Sum {                               // of a region's gradients over ranks
    int64_t layer, bytes;                    // that left
    double begin, end;                       // sent; added
  };
  std::vector<Sum> sums{};
  double end = 0;  // of all of them, and of the pipeline
};

struct ParallelGradients {
  LossResult loss;  // of the whole step, the same on all ranks
  double norm = 0;  // of the whole gradient
};
// Loss and gradient of this column's chunks together with all others'. step.loss must have the scales of the whole
// step. Behind it each region's own shard holds the gradient of the whole step. Collective.
// trace: filled where given.
ParallelGradients parallel_gradients(RankState& state, ThreadPool& pool, const PipelineStep& step,
                                     StepTrace* trace = nullptr);

// The main loss alone of all columns' chunks, of which each may have another number up to `most`. Collective.
LossResult parallel_loss(RankState& state, ThreadPool& pool, const PipelineStep& own, size_t most);

struct UpdateOptions {
  double lr, weight_decay, beta1, beta2, eps;
  double gradient_scale = 1;
  double bias_update_speed = 0;  // 0: the correction biases stay
};
// One step of AdamW, counted from 1, and of the biases. Returns whether all is finite behind it, on all ranks.
// Collective.
bool parallel_update(RankState& state, ThreadPool& pool, int64_t step, const ExpertLoad& load,
                     const UpdateOptions& options);

// An average of the weights, each rank's of its shards: begins as the weights are, and moves behind a step.
void begin_average(RankState& state);
void move_average(RankState& state, ThreadPool& pool, double decay);
// The average and the weights change places, on all ranks. Collective.
void swap_average(RankState& state);

// The correction biases of all ranks. Collective.
bool biases_are_finite(const RankState& state);

}  // namespace fathom
