#include "train/parallel_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/terminal.h"
#include "ops/adamw.h"
#include "ops/cross_entropy.h"
#include "train/balance.h"

namespace fathom {
namespace {

enum Tag : int { kAllTag = 0, kRegionTag = 1, kPipelineTag = 1 << 10, kExpertTag = 0 };  // those of experts are higher

int rank_at(const ParallelLayout& layout, int place, int column) { return place * layout.width() + column; }

// Places (and directions there) that hold a stage.
std::vector<StagePlace> holders_of(const PipelineSchedule& schedule, int stage) {
  std::vector<StagePlace> holders;
  for (int place = 0; place < schedule.n_ranks; ++place) {
    for (int d = 0; d < schedule.n_directions(); ++d) {
      if (schedule.stage_of(place, d) == stage) holders.push_back({place, d});
    }
  }
  return holders;
}

// The ranks of these places in the columns that `takes` takes, each once and in order.
template <class Takes>
std::vector<int> ranks_of(const ParallelLayout& layout, const std::vector<StagePlace>& places, const Takes& takes) {
  std::vector<int> ranks;
  for (const StagePlace& at : places) {
    for (int column = 0; column < layout.width(); ++column) {
      if (takes(column)) ranks.push_back(rank_at(layout, at.rank, column));
    }
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

class RegionMaker {
 public:
  RegionMaker(Communicator& comm, RankState& state, Format moments) : comm_(comm), state_(state), moments_(moments) {}

  // Of all stages in order: all ranks make those that they have in common one after the other.
  void make_all() {
    const int n_stages = state_.schedule.n_stages();
    const auto any = [](int) { return true; };
    const auto same_experts = [&](int column) { return column % state_.layout.ep == state_.column % state_.layout.ep; };
    std::vector<StagePlace> with_embed = holders_of(state_.schedule, 0);
    if (state_.config.num_nextn_predict_layers > 0 && n_stages > 1) {
      const std::vector<StagePlace> last = holders_of(state_.schedule, n_stages - 1);
      with_embed.insert(with_embed.end(), last.begin(), last.end());
    }
    add_embedding(ranks_of(state_.layout, with_embed, any));
    for (int stage = 0; stage < n_stages; ++stage) {
      const std::vector<StagePlace> places = holders_of(state_.schedule, stage);
      for (size_t d = 0; d < state_.stages.size(); ++d) {
        if (state_.schedule.stage_of(state_.place, static_cast<int>(d)) != stage) continue;
        const Parameters& p = state_.stages[d].parameters;
        add(d, p.n_embed, p.experts_begin, ranks_of(state_.layout, places, any));
        add(d, p.experts_begin, p.n_trained, ranks_of(state_.layout, places, same_experts));
      }
      ++tag_;  // on those too that have nothing of it
    }
  }

 private:
  void add_embedding(const std::vector<int>& ranks) {
    for (size_t d = 0; d < state_.stages.size(); ++d) {
      const int64_t n = state_.stages[d].parameters.n_embed;
      if (n == 0) continue;
      add(d, 0, n, ranks);
      if (d == 0 && state_.stages.size() > 1 && state_.stages[1].parameters.n_embed > 0) {
        state_.regions.back().twin = 1;
        return;
      }
    }
  }

  void add(size_t direction, int64_t begin, int64_t end, const std::vector<int>& ranks) {
    if (begin == end) return;
    Region region{.direction = direction,
                  .begin = static_cast<size_t>(begin),
                  .size = static_cast<size_t>(end - begin),
                  .holders = make_group(comm_, ranks, kRegionTag + tag_)};
    region.own = shard_of(region.size, region.holders.size(), region.holders.index);
    const auto n_own = static_cast<int64_t>(region.own.end - region.own.begin);
    region.first_moment = allocate_moment(n_own, moments_);
    region.second_moment = allocate_moment(n_own, moments_);
    state_.regions.push_back(std::move(region));
  }

  Communicator& comm_;
  RankState& state_;
  const Format moments_;
  int tag_ = 0;
};

std::span<float> values_of(const Region& region, const Parameters& of_stage) {
  return of_stage.trained().subspan(region.begin, region.size);
}

// Sums of all ranks, of which each has those of the chunks that ended there.
void sum_losses(const RankGroup& all, LossResult& loss) {
  double sums[] = {loss.loss_sum, loss.mtp_loss_sum, loss.balance_loss};
  sum_over(all, std::span<double>(sums));
  loss.loss_sum = sums[0];
  loss.mtp_loss_sum = sums[1];
  loss.balance_loss = sums[2];
  std::vector<int64_t> counts = {loss.main_targets, loss.mtp_targets};
  for (const auto& layer : loss.expert_load) counts.insert(counts.end(), layer.begin(), layer.end());
  sum_over(all, std::span(counts));
  loss.main_targets = counts[0];
  loss.mtp_targets = counts[1];
  auto next = counts.begin() + 2;
  for (auto& layer : loss.expert_load) {
    std::copy_n(next, layer.size(), layer.begin());
    next += std::ssize(layer);
  }
}

// Rows of all MoE layers and modules, whichever this rank has seen.
void fill_load(ExpertLoad& load, const ModelConfig& config, bool with_mtp) {
  size_t rows = with_mtp ? static_cast<size_t>(config.num_nextn_predict_layers) : 0;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) rows += config.is_moe(l) ? 1 : 0;
  load.resize(rows);
  for (auto& row : load) row.resize(static_cast<size_t>(config.router.n_routed_experts));
}

// Of a stage: the rows of its layers, and of the modules where it has them.
ExpertLoad load_of_stage(const ExpertLoad& load, const ModelConfig& config, const WeightPart& part) {
  ExpertLoad rows;
  size_t row = 0;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    if (!config.is_moe(l)) continue;
    if (l >= part.first_layer && l < part.end_layer) rows.push_back(load[row]);
    ++row;
  }
  if (part.head) rows.insert(rows.end(), load.begin() + static_cast<ptrdiff_t>(row), load.end());
  return rows;
}

}  // namespace

void check_layout(const ParallelLayout& layout, int n_ranks, const ModelConfig& config, int64_t n_sequences,
                  int64_t micro_batch) {
  const auto [pp, ep, dp] = std::array{layout.pp, layout.ep, layout.dp};
  const int width = layout.width();
  if (layout.n_ranks() != n_ranks) {
    throw UsageError(
        "train: --pp {} --ep {} --dp {} needs {} processes (pp times the greater of ep and dp), there are {}", pp, ep,
        dp, layout.n_ranks(), n_ranks);
  }
  if (width % ep != 0 || width % dp != 0) {
    throw UsageError("train: of --ep {} and --dp {} the greater must be a multiple of the other", ep, dp);
  }
  if (config.router.n_routed_experts % ep != 0 || (ep > 1 && config.router.n_routed_experts == 0)) {
    throw UsageError("train: {} experts cannot be dealt out evenly to --ep {}", config.router.n_routed_experts, ep);
  }
  const int stages = layout.schedule == ScheduleKind::dualpipev ? 2 * pp : pp;
  if (config.num_hidden_layers < stages) {
    throw UsageError("train: a pipeline of {} stages needs as many layers, the model has {}", stages,
                     config.num_hidden_layers);
  }
  if (n_sequences % (int64_t{width} * micro_batch) != 0) {
    throw UsageError("train: {} sequences a step do not go evenly into {} columns of micro-batches of {}", n_sequences,
                     width, micro_batch);
  }
  try {
    make_schedule(layout.schedule, pp, static_cast<int>(n_sequences / width / micro_batch));
  } catch (const Error& error) {
    throw UsageError("train: {}", error.what());
  }
}

std::unique_ptr<RankState> make_rank_state(Communicator& comm, const ParallelLayout& layout, const ModelConfig& config,
                                           int n_chunks, Format moments, Precision precision) {
  auto state = std::make_unique<RankState>();
  const int width = layout.width();
  state->layout = layout;
  state->config = config;
  state->schedule = make_schedule(layout.schedule, layout.pp, n_chunks);
  state->place = comm.rank() / width;
  state->column = comm.rank() % width;
  std::vector<int> all(static_cast<size_t>(layout.n_ranks())), pipeline, experts;
  std::iota(all.begin(), all.end(), 0);
  for (int place = 0; place < layout.pp; ++place) pipeline.push_back(rank_at(layout, place, state->column));
  for (int i = 0; i < layout.ep; ++i) {
    experts.push_back(rank_at(layout, state->place, state->column / layout.ep * layout.ep + i));
  }
  state->all = make_group(comm, all, kAllTag);
  state->pipeline = make_group(comm, pipeline, kPipelineTag);
  if (layout.ep > 1) {
    const int per_node = layout.ranks_per_node > 0 ? std::min(layout.ranks_per_node, layout.ep) : layout.ep;
    state->experts = make_expert_group(comm, experts, per_node, kExpertTag);
  }
  for (int d = 0; d < state->schedule.n_directions(); ++d) {
    Stage& stage = state->stages.emplace_back(make_stage(config, state->schedule.n_stages(),
                                                         state->schedule.stage_of(state->place, d),
                                                         state->experts ? &*state->experts : nullptr));
    stage.model.precision = precision;
    state->decay.push_back(decay_runs(stage.parameters, config));
  }
  RegionMaker(comm, *state, moments).make_all();
  return state;
}

ParallelGradients parallel_gradients(RankState& state, ThreadPool& pool, const PipelineStep& step, StepTrace* trace) {
  for (Stage& stage : state.stages) {
    std::memset(stage.gradients.memory.data(), 0, stage.gradients.memory.size());
  }
  ParallelGradients result;
  if (std::ssize(step.chunks) != state.schedule.n_chunks) {  // of a batch that grows
    state.schedule = make_schedule(state.layout.schedule, state.layout.pp, static_cast<int>(step.chunks.size()));
  }
  StageWork work(pool, state.schedule, state.stages, step);
  StepTrace unwanted;
  StepTrace& told = trace != nullptr ? *trace : unwanted;
  if (trace != nullptr) {
    barrier(state.all);
    work.keep_messages(told.messages);
  }
  told.origin_s = monotonic_s();
  told.pipeline = run_pipeline(state.pipeline, state.schedule, work.work(),
                               {.origin_s = told.origin_s, .pieces = trace != nullptr});
  result.loss = work.result();
  fill_load(result.loss.expert_load, state.config, step.loss.mtp_weight > 0);
  sum_losses(state.all, result.loss);

  Arena arena;
  Context ctx{pool, arena};
  double squares = 0;
  told.reduce_begin = monotonic_s() - told.origin_s;
  for (const Region& region : state.regions) {
    const std::span<float> gradient = values_of(region, state.stages[region.direction].gradients);
    if (region.twin) {
      const std::span<float> other = values_of(region, state.stages[*region.twin].gradients);
      for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += other[i];
    }
    reduce_scatter(region.holders, gradient);
    squares += sum_of_squares(ctx, gradient.subspan(region.own.begin, region.own.end - region.own.begin));
  }
  told.reduce_end = monotonic_s() - told.origin_s;
  sum_over(state.all, std::span(&squares, 1));
  result.norm = std::sqrt(squares);
  return result;
}

LossResult parallel_loss(RankState& state, ThreadPool& pool, const PipelineStep& own, size_t most) {
  // Experts on other ranks want every column to come by as often: with a token where there is nothing left.
  PipelineStep filled = own;
  Examples nothing;
  nothing.sequences = {{0}};
  nothing.next = {kNoTarget};
  while (filled.chunks.size() < most) filled.chunks.push_back(nothing);
  const PipelineSchedule schedule =
      make_forward_schedule(state.layout.schedule, state.layout.pp, static_cast<int>(most));
  StageWork work(pool, schedule, state.stages, filled);
  run_pipeline(state.pipeline, schedule, work.work(), {.origin_s = monotonic_s()});
  LossResult loss = work.result();
  fill_load(loss.expert_load, state.config, false);
  sum_losses(state.all, loss);
  return loss;
}

bool parallel_update(RankState& state, ThreadPool& pool, int64_t step, const ExpertLoad& load, const UpdateOptions& o) {
  Arena arena;
  Context ctx{pool, arena};
  bool finite = true;
  for (Region& region : state.regions) {
    Stage& stage = state.stages[region.direction];
    const std::span<float> values = values_of(region, stage.parameters);
    const size_t begin = region.begin + region.own.begin, end = region.begin + region.own.end;
    for (const DecayRun& run : state.decay[region.direction]) {
      const size_t from = std::max(begin, run.begin), to = std::min(end, run.begin + run.size);
      if (from >= to) continue;
      const AdamwConfig adamw{static_cast<float>(o.lr), static_cast<float>(o.beta1), static_cast<float>(o.beta2),
                              static_cast<float>(o.eps), static_cast<float>(run.decays ? o.weight_decay : 0)};
      const auto at = static_cast<int64_t>(from - begin), n = static_cast<int64_t>(to - from);
      finite &=
          adamw_step(ctx, adamw, step, stage.parameters.trained().subspan(from, to - from),
                     stage.gradients.trained().subspan(from, to - from), region.first_moment.values.columns(at, n),
                     region.second_moment.values.columns(at, n), static_cast<float>(o.gradient_scale));
    }
    all_gather(region.holders, values);
    if (region.twin) {
      const std::span<float> other = values_of(region, state.stages[*region.twin].parameters);
      std::copy(values.begin(), values.end(), other.begin());
    }
  }
  for (Stage& stage : state.stages) {
    if (o.bias_update_speed == 0) break;
    update_biases(stage.model.weights, load_of_stage(load, state.config, stage.part), o.bias_update_speed);
  }
  return !is_on_any(state.all, !finite);
}

bool biases_are_finite(const RankState& state) {
  const auto are_finite = [](const Stage& stage) { return biases_are_finite(stage.model.weights); };
  return !is_on_any(state.all, !std::ranges::all_of(state.stages, are_finite));
}

}  // namespace fathom
