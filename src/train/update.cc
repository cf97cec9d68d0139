#include "train/update.h"

#include <algorithm>
#include <cmath>

#include "ops/adamw.h"
#include "train/step.h"

namespace fathom {

TrainedRuns trained_runs(const Parameters& parameters, const ModelConfig& config, const LossOptions& loss) {
  const auto begin = static_cast<size_t>(parameters.indexers_begin), end = static_cast<size_t>(parameters.indexers_end);
  TrainedRuns trained;
  const auto add = [](std::vector<DecayRun>& to, const DecayRun& run, size_t from, size_t until) {
    from = std::max(from, run.begin);
    until = std::min(until, run.begin + run.size);
    if (from < until) to.push_back({from, until - from, run.decays});
  };
  for (const DecayRun& run : decay_runs(parameters, config)) {
    if (!loss.indexers_alone) {
      add(trained.main, run, 0, begin);
      add(trained.main, run, end, parameters.trained().size());
    }
    if (loss.train_indexers) add(trained.indexers, run, begin, end);
  }
  return trained;
}

GradientNorms gradient_norms(Context& ctx, const Parameters& gradients) {
  const std::span<float> all = gradients.trained();
  const auto begin = static_cast<size_t>(gradients.indexers_begin), end = static_cast<size_t>(gradients.indexers_end);
  if (begin == end) return {std::sqrt(sum_of_squares(ctx, all)), 0};
  const double before = sum_of_squares(ctx, all.first(begin)), behind = sum_of_squares(ctx, all.subspan(end));
  return {std::sqrt(before + behind), std::sqrt(sum_of_squares(ctx, all.subspan(begin, end - begin)))};
}

bool update_parameters(Context& ctx, const TrainOptions& o, TrainedState& state, const Parameters& gradients,
                       const TrainedRuns& runs, int64_t update, double lr, const GradientNorms& norms) {
  bool finite = true;
  const auto update_runs = [&](const std::vector<DecayRun>& of, double norm) {
    const double scale = gradient_scale(o, norm);
    for (const DecayRun& r : of) {
      const auto begin = static_cast<int64_t>(r.begin), size = static_cast<int64_t>(r.size);
      const AdamwConfig config{static_cast<float>(lr), static_cast<float>(o.beta1), static_cast<float>(o.beta2),
                               static_cast<float>(o.eps), static_cast<float>(r.decays ? o.weight_decay : 0)};
      finite &= adamw_step(ctx, config, update, state.parameters.trained().subspan(r.begin, r.size),
                           gradients.trained().subspan(r.begin, r.size), state.first_moment.values.columns(begin, size),
                           state.second_moment.values.columns(begin, size), static_cast<float>(scale));
    }
  };
  update_runs(runs.main, norms.main);
  update_runs(runs.indexers, norms.indexers);
  return finite;
}

}  // namespace fathom
