#include "parallel/spread_experts.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/residency.h"

namespace fathom {
namespace {

constexpr int kTag = 1 << 8;       // of exchanges of rows, and from here on
constexpr int kAnyTag = kTag + 8;  // of what any() asks

PlacementShape shape_of(const ModelConfig& config, int n_ranks, const SpreadOptions& options) {
  const int experts = static_cast<int>(config.router.n_routed_experts), copies = experts + options.redundant_experts;
  if (experts == 0) throw UsageError("serve: the model has no experts that several processes could share");
  if (options.redundant_experts > experts * (n_ranks - 1)) {
    throw UsageError("serve: --redundant-experts {}: {} processes with every expert have {} copies",
                     options.redundant_experts, n_ranks, experts * (n_ranks - 1));
  }
  if (copies % n_ranks != 0) {
    throw UsageError(
        "serve: {} experts and {} copies cannot be dealt out evenly to {} processes; --redundant-experts "
        "{} can",
        experts, options.redundant_experts, n_ranks, options.redundant_experts + n_ranks - copies % n_ranks);
  }
  const int per_node = options.ranks_per_node > 0 ? std::min(options.ranks_per_node, n_ranks) : n_ranks;
  if (n_ranks % per_node != 0) {
    throw UsageError("serve: {} processes do not fill nodes of --ranks-per-node {}", n_ranks, per_node);
  }
  return {.n_replicas = copies,
          .n_group = static_cast<int>(config.router.n_group),
          .n_nodes = n_ranks / per_node,
          .n_gpus = n_ranks};
}

// Two copies of an expert on one rank are one.
ExpertHomes homes_of(const ExpertPlacement& placement, const PlacementShape& shape) {
  const int each = shape.n_replicas / shape.n_gpus;
  ExpertHomes homes;
  for (const std::vector<int>& copies : placement.logical_to_physical) {
    std::vector<int>& ranks = homes.emplace_back();
    for (const int copy : copies) ranks.push_back(copy / each);
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  }
  return homes;
}

bool has(const std::vector<int>& ranks, int rank) { return std::find(ranks.begin(), ranks.end(), rank) != ranks.end(); }

RankGroup all_ranks(Communicator& comm, int tag) {
  std::vector<int> ranks(static_cast<size_t>(comm.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return make_group(comm, ranks, tag);
}

}  // namespace

void check_spread(const ModelConfig& config, int n_ranks, const SpreadOptions& options) {
  shape_of(config, n_ranks, options);
}

SpreadExperts::SpreadExperts(Communicator& comm, Model& model, const SpreadOptions& options)
    : group_(all_ranks(comm, kTag)),
      any_group_(all_ranks(comm, kAnyTag)),
      model_(model),
      options_(options),
      shape_(shape_of(model.config, comm.size(), options)),
      routed_experts_([this](Context& ctx, const Model&, const MoeWeights& w, Tensor y_sorted, const MoeSaved& s,
                             const std::function<void()>& meanwhile) { run(ctx, w, y_sorted, s, meanwhile); }) {
  for (const LayerWeights& layer : model.weights.layers) {
    if (layer.moe.gate) layers_.push_back(&layer.moe);
  }
  const std::vector<double> equal(static_cast<size_t>(model.config.router.n_routed_experts), 1);
  const ExpertPlacement placement = place_experts(equal, shape_);
  placements_.assign(layers_.size(), placement);
  for (const MtpWeights& module : model.weights.mtp) layers_.push_back(&module.layer.moe);
  homes_.assign(layers_.size(), homes_of(placement, shape_));
  model.routed_experts = &routed_experts_;
  if (!options_.mapped) return;
  const ExpertHomes nowhere(homes_[0].size());
  for (size_t l = 0; l < layers_.size(); ++l) tell_system(*layers_[l], nowhere, homes_[l]);
}

SpreadExperts::~SpreadExperts() { model_.routed_experts = nullptr; }

int64_t SpreadExperts::n_experts_here() const {
  int64_t n = 0;
  for (const ExpertHomes& homes : homes_) {
    n += std::count_if(homes.begin(), homes.end(), [&](const auto& ranks) { return has(ranks, group_.index); });
  }
  return n;
}

void SpreadExperts::run(Context& ctx, const MoeWeights& w, Tensor y_sorted, const MoeSaved& s,
                        const std::function<void()>& meanwhile) {
  const auto layer = std::find(layers_.begin(), layers_.end(), &w) - layers_.begin();
  FATHOM_CHECK(layer < std::ssize(layers_));
  StagePass pass = experts_at_homes(ctx, model_, group_, homes_[static_cast<size_t>(layer)], w, y_sorted, s,
                                    options_.formats, traffic_, meanwhile);
  constexpr int kEagerLooks = 2000;  // a millisecond or two
  finish(pass, *group_.comm, kEagerLooks);
}

void SpreadExperts::join(Context& ctx, const MoeWeights& w) {
  const ArenaScope scope(ctx.arena);
  run(ctx, w, new_f32(ctx, {0, model_.config.hidden_size}), {}, [] {});
}

void SpreadExperts::join_pass(Context& ctx) {
  for (size_t l = 0; l < placements_.size(); ++l) join(ctx, *layers_[l]);
}

void SpreadExperts::join_module(Context& ctx) { join(ctx, *layers_[placements_.size()]); }

bool SpreadExperts::any(bool mine) { return is_on_any(any_group_, mine); }

std::vector<ExpertPlacement> SpreadExperts::placements_for(const ExpertLoad& load) const {
  FATHOM_CHECK(load.size() == placements_.size());
  std::vector<ExpertPlacement> placements;
  for (const auto& row : load) placements.push_back(place_experts({row.begin(), row.end()}, shape_));
  return placements;
}

double SpreadExperts::worst_load(const ExpertLoad& load, const std::vector<ExpertPlacement>& placements) const {
  double worst = 1;
  for (size_t l = 0; l < load.size(); ++l) {
    worst = std::max(worst, max_over_mean_load({load[l].begin(), load[l].end()}, placements[l], shape_.n_gpus));
  }
  return worst;
}

void SpreadExperts::place(const std::vector<ExpertPlacement>& placements) {
  FATHOM_CHECK(placements.size() == placements_.size());
  for (size_t l = 0; l < placements.size(); ++l) {
    ExpertHomes homes = homes_of(placements[l], shape_);
    if (options_.mapped) tell_system(*layers_[l], homes_[l], homes);
    homes_[l] = std::move(homes);
  }
  placements_ = placements;
}

// What comes is read, what goes is given up.
void SpreadExperts::tell_system(const MoeWeights& w, const ExpertHomes& before, const ExpertHomes& after) const {
  for (size_t e = 0; e < after.size(); ++e) {
    const bool was = has(before[e], group_.index), is = has(after[e], group_.index);
    if (was == is) continue;
    for (const Tensor& matrices : {w.gate_up, w.down}) {
      const Tensor expert = matrices[static_cast<int64_t>(e)];
      const std::span bytes{static_cast<const std::byte*>(expert.data), static_cast<size_t>(expert.size_bytes())};
      (is ? read_ahead : give_back)(bytes);
    }
  }
}

}  // namespace fathom
