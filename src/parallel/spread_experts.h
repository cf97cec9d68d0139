// The routed experts of a model that is served, spread over processes (V3 section 3.4): each has all else of the model
// and sequences of its own, and computes for the rows of all those experts that are at home there. Passes run together:
// whoever has no token joins, so that every layer's exchange has everybody in it.
#pragma once

#include <string>
#include <vector>

#include "parallel/eplb.h"
#include "parallel/expert_parallel.h"

namespace fathom {

struct SpreadOptions {
  int redundant_experts = 0;  // copies of the most asked for beside one of each
  int ranks_per_node = 0;     // 0: all are on one
  bool mapped = false;        // weights are views of files: of experts that move the system is told
  RowFormats formats{};
};

// UsageError of `serve` for copies that cannot be dealt out evenly, and ranks that do not fill nodes.
void check_spread(const ModelConfig& config, int n_ranks, const SpreadOptions& options);

class SpreadExperts {
 public:
  // The model's own experts come from here from then on; both must stay where they are. Error as check_spread() has it.
  // The same on all ranks.
  SpreadExperts(Communicator& comm, Model& model, const SpreadOptions& options);
  ~SpreadExperts();
  SpreadExperts(const SpreadExperts&) = delete;
  SpreadExperts& operator=(const SpreadExperts&) = delete;

  // To be called by all ranks at the same place of their work.
  void join_pass(Context& ctx);    // of the main model, with no token
  void join_module(Context& ctx);  // of the first MTP module
  bool any(bool mine);             // whether it is so on any rank

  // Where the experts of each MoE layer go when they are asked for as `load` [MoE layer][expert] says; on one rank.
  std::vector<ExpertPlacement> placements_for(const ExpertLoad& load) const;
  // On all ranks, between two passes. Of the modules none: their experts stay.
  void place(const std::vector<ExpertPlacement>& placements);
  // What the busiest rank has to do over the mean, in the layer where this is worst.
  double worst_load(const ExpertLoad& load, const std::vector<ExpertPlacement>& placements) const;
  const std::vector<ExpertPlacement>& placements() const { return placements_; }
  int64_t n_experts_here() const;  // of all layers, copies that are at home on this rank

 private:
  void run(Context& ctx, const MoeWeights& w, Tensor y_sorted, const MoeSaved& s,
           const std::function<void()>& meanwhile);
  void join(Context& ctx, const MoeWeights& w);
  void tell_system(const MoeWeights& w, const ExpertHomes& before, const ExpertHomes& after) const;

  RankGroup group_, any_group_;  // of exchanges of rows; of what any() asks
  Model& model_;
  const SpreadOptions options_;
  const PlacementShape shape_;
  std::vector<const MoeWeights*> layers_;    // with experts, the modules' behind them
  std::vector<ExpertHomes> homes_;           // of each
  std::vector<ExpertPlacement> placements_;  // of the main model's
  Traffic traffic_;
  RoutedExperts routed_experts_;
};

}  // namespace fathom
