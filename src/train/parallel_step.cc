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
        for (const bool experts : {false, true}) {
          const std::vector<int> ranks =
              experts ? ranks_of(state_.layout, places, same_experts) : ranks_of(state_.layout, places, any);
          add_layers(d, experts, ranks);
        }
      }
    }
  }

 private:
  void add_embedding(const std::vector<int>& ranks) {
    for (size_t d = 0; d < state_.stages.size(); ++d) {
      const int64_t n = state_.stages[d].parameters.n_embed;
      if (n == 0) continue;
      add(d, -1, 0, n, ranks, kRegionTag);
      if (d == 0 && state_.stages.size() > 1 && state_.stages[1].parameters.n_embed > 0) {
        state_.regions.back().twin = 1;
        return;
      }
    }
  }

  // The experts of a stage's layers or all else of them, and of what stands behind, each a region.
  void add_layers(size_t direction, bool experts, const std::vector<int>& ranks) {
    const Stage& stage = state_.stages[direction];
    const Parameters& p = stage.parameters;
    const ModelWeights& w = p.weights;
    std::vector<std::pair<int64_t, int64_t>> begins;  // layer, first of its floats
    const auto begin_at = [&](int64_t layer, Tensor first) {
      if (first) begins.emplace_back(layer, first.f32() - p.trained().data());
    };
    for (int64_t l = stage.part.first_layer; l < stage.part.end_layer; ++l) {
      const LayerWeights& layer = w.layers[static_cast<size_t>(l)];
      begin_at(l, experts ? layer.moe.gate_up : layer.input_norm);
    }
    if (!experts) begin_at(stage.part.end_layer, w.norm);
    if (experts && !w.mtp.empty()) begin_at(stage.part.end_layer, w.mtp[0].layer.moe.gate_up);
    int64_t end = experts ? p.n_trained : p.experts_begin;
    // Those whose gradients come first.
    for (auto next = begins.rbegin(); next != begins.rend(); ++next) {
      const auto [layer, begin] = *next;
      add(direction, layer, begin, end, ranks, kRegionTag + 1 + 2 * static_cast<int>(layer) + (experts ? 1 : 0));
      end = begin;
    }
    FATHOM_CHECK(experts || end == p.n_embed);
  }

  void add(size_t direction, int64_t layer, int64_t begin, int64_t end, const std::vector<int>& ranks, int tag) {
    FATHOM_CHECK(begin < end && tag < kPipelineTag);
    Region region{.direction = direction,
                  .layer = layer,
                  .begin = static_cast<size_t>(begin),
                  .size = static_cast<size_t>(end - begin),
                  .holders = make_group(comm_, ranks, tag)};
    region.own = shard_of(region.size, region.holders.size(), region.holders.index);
    const auto n_own = static_cast<int64_t>(region.own.end - region.own.begin);
    region.first_moment = allocate_moment(n_own, moments_);
    region.second_moment = allocate_moment(n_own, moments_);
    state_.regions.push_back(std::move(region));
  }

  Communicator& comm_;
  RankState& state_;
  const Format moments_;
};

std::span<float> values_of(const Region& region, const Parameters& of_stage) {
  return of_stage.trained().subspan(region.begin, region.size);
}

// The sums of all regions' gradients over their holders. Each begins as soon as its gradients are those of the step,
// and goes on beside the pipeline's passes; in which order is each rank's own affair, for each has its tag.
class GradientSums {
 public:
  explicit GradientSums(RankState& state) : state_(state), sums_(state.regions.size()), times_(sums_.size()) {}

  // As StageWork::tell_final has it.
  void add_final(int direction, int64_t layer) {
    final_from_[direction] = layer;
    for (size_t i = 0; i < sums_.size(); ++i) {
      const Region& region = state_.regions[i];
      const auto is_final = [&](size_t d) { return final_from_[d] <= region.layer; };
      if (begun(i) || !is_final(region.direction) || (region.twin && !is_final(*region.twin))) continue;
      const std::span<float> gradient = values_of(region, state_.stages[region.direction].gradients);
      if (region.twin) {
        const std::span<float> other = values_of(region, state_.stages[*region.twin].gradients);
        for (size_t v = 0; v < gradient.size(); ++v) gradient[v] += other[v];
      }
      const size_t own = region.own.end - region.own.begin;
      times_[i] = {region.layer, static_cast<int64_t>((region.size - own) * sizeof(float)), monotonic_s(), 0};
      sums_[i] = reduce_scatter(region.holders, gradient);
      go_on(i);
    }
  }

  // A piece of one whose messages have come. Whether there was one.
  bool go_on() {
    for (size_t i = 0; i < sums_.size(); ++i) {
      if (sums_[i].over() || !sums_[i].can_go_on()) continue;
      go_on(i);
      return true;
    }
    return false;
  }

  void finish() {
    for (size_t i = 0; i < sums_.size(); ++i) {
      FATHOM_CHECK(begun(i));
      while (!sums_[i].over()) {
        if (!go_on()) state_.all.comm->pause(n_looks_++);
      }
    }
  }

  // Of regions that others hold too.
  std::vector<StepTrace::Sum> times(double origin_s) const {
    std::vector<StepTrace::Sum> told;
    for (StepTrace::Sum sum : times_) {
      sum.begin -= origin_s;
      sum.end -= origin_s;
      if (sum.bytes > 0) told.push_back(sum);
    }
    return told;
  }

 private:
  bool begun(size_t i) const { return times_[i].begin > 0; }
  void go_on(size_t i) {
    sums_[i].go_on();
    if (sums_[i].over()) times_[i].end = monotonic_s();
    n_looks_ = 0;
  }

  RankState& state_;
  int64_t final_from_[2] = {INT64_MAX, INT64_MAX};  // [direction]
  std::vector<StagePass> sums_;                     // [region]
  std::vector<StepTrace::Sum> times_;               // monotonic_s()
  int n_looks_ = 0;                                 // in vain, in finish()
};

std::span<float> own_values(const Region& region, const Parameters& of_stage) {
  return values_of(region, of_stage).subspan(region.own.begin, region.own.end - region.own.begin);
}

std::span<float> biases_of(const Parameters& parameters) {
  return parameters.all().subspan(static_cast<size_t>(parameters.n_trained));
}

// Every holder's own shard of the weights on its way to the others.
Exchange send_weights(const RankState& state, const Region& region) {
  return all_gather(region.holders, values_of(region, state.stages[region.direction].parameters));
}
void receive_weights(RankState& state, std::vector<Exchange>& on_their_way) {
  for (Exchange& weights : on_their_way) weights.wait();
  for (const Region& region : state.regions) {
    if (!region.twin) continue;
    std::ranges::copy(values_of(region, state.stages[region.direction].parameters),
                      values_of(region, state.stages[*region.twin].parameters).begin());
  }
}

// Sums of all ranks, of which each has those of the chunks that ended there.
void sum_losses(const RankGroup& all, LossResult& loss) {
  double sums[] = {loss.loss_sum, loss.mtp_loss_sum, loss.balance_loss, loss.divergence_sum};
  sum_over(all, std::span<double>(sums));
  loss.loss_sum = sums[0];
  loss.mtp_loss_sum = sums[1];
  loss.balance_loss = sums[2];
  loss.divergence_sum = sums[3];
  std::vector<int64_t> counts = {loss.main_targets, loss.mtp_targets, loss.taught_targets};
  for (const auto& layer : loss.expert_load) counts.insert(counts.end(), layer.begin(), layer.end());
  sum_over(all, std::span(counts));
  loss.main_targets = counts[0];
  loss.mtp_targets = counts[1];
  loss.taught_targets = counts[2];
  auto next = counts.begin() + 3;
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

void check_layout(const ParallelLayout& layout, int64_t n_ranks, const ModelConfig& config, int64_t n_sequences,
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
  if (const int per_node = layout.ranks_per_node; per_node > 0 && per_node < ep && ep % per_node != 0) {
    throw UsageError("train: --ep {} does not fill nodes of --ranks-per-node {}", ep, per_node);
  }
  constexpr int64_t kMostLayers = 500, kMostOfStage = 200;  // for which there are tags
  const int64_t stages = layout.schedule == ScheduleKind::dualpipev ? 2 * pp : pp;
  if (config.num_hidden_layers > kMostLayers || (ep > 1 && config.num_hidden_layers > kMostOfStage * stages)) {
    throw UsageError(
        "train: processes work together on models of up to {} layers, {} in a stage with --ep; this has {}",
        kMostLayers, kMostOfStage, config.num_hidden_layers);
  }
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
  GradientSums sums(state);
  work.tell_final([&](int direction, int64_t layer) { sums.add_final(direction, layer); });
  PipelineWork passes = work.work();
  passes.beside = [&] { return sums.go_on(); };
  told.origin_s = monotonic_s();
  told.pipeline =
      run_pipeline(state.pipeline, state.schedule, passes, {.origin_s = told.origin_s, .pieces = trace != nullptr});
  sums.finish();
  told.end = monotonic_s() - told.origin_s;
  told.sums = sums.times(told.origin_s);
  result.loss = work.result();
  fill_load(result.loss.expert_load, state.config, step.loss.mtp_weight > 0);
  sum_losses(state.all, result.loss);

  Arena arena;
  Context ctx{pool, arena};
  double squares = 0;
  for (const Region& region : state.regions) {
    squares += sum_of_squares(ctx, own_values(region, state.stages[region.direction].gradients));
  }
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
  std::vector<Exchange> on_their_way;
  for (Region& region : state.regions) {
    Stage& stage = state.stages[region.direction];
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
    on_their_way.push_back(send_weights(state, region));
  }
  receive_weights(state, on_their_way);
  for (Stage& stage : state.stages) {
    if (o.bias_update_speed == 0) break;
    update_biases(stage.model.weights, load_of_stage(load, state.config, stage.part), o.bias_update_speed);
  }
  return !is_on_any(state.all, !finite);
}

void begin_average(RankState& state) {
  for (Region& region : state.regions) {
    const std::span<const float> own = own_values(region, state.stages[region.direction].parameters);
    region.average.assign(own.begin(), own.end());
  }
  state.bias_averages.clear();
  for (const Stage& stage : state.stages) {
    const std::span<const float> biases = biases_of(stage.parameters);
    state.bias_averages.emplace_back(biases.begin(), biases.end());
  }
}

void move_average(RankState& state, ThreadPool& pool, double decay) {
  Arena arena;
  Context ctx{pool, arena};
  const auto d = static_cast<float>(decay);
  for (Region& region : state.regions) {
    move_average(ctx, region.average, own_values(region, state.stages[region.direction].parameters), d);
  }
  for (size_t i = 0; i < state.stages.size(); ++i) {
    move_average(ctx, state.bias_averages[i], biases_of(state.stages[i].parameters), d);
  }
}

void swap_average(RankState& state) {
  std::vector<Exchange> on_their_way;
  for (Region& region : state.regions) {
    std::ranges::swap_ranges(region.average, own_values(region, state.stages[region.direction].parameters));
    on_their_way.push_back(send_weights(state, region));
  }
  receive_weights(state, on_their_way);
  for (size_t i = 0; i < state.stages.size(); ++i) {
    std::ranges::swap_ranges(state.bias_averages[i], biases_of(state.stages[i].parameters));
  }
}

bool biases_are_finite(const RankState& state) {
  const auto are_finite = [](const Stage& stage) { return biases_are_finite(stage.model.weights); };
  return !is_on_any(state.all, !std::ranges::all_of(state.stages, are_finite));
}

}  // namespace fathom
