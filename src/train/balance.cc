#include "train/balance.h"

#include <algorithm>
#include <numeric>

namespace fathom {
namespace {

double mean_load(const std::vector<int64_t>& load) {
  const auto sum = std::accumulate(load.begin(), load.end(), int64_t{0});
  return static_cast<double>(sum) / static_cast<double>(load.size());
}

// Of the MoE layers, the MTP layers' last.
std::vector<Tensor> biases_of(const ModelWeights& weights) {
  std::vector<Tensor> biases;
  for (const LayerWeights& layer : weights.layers) {
    if (layer.moe.gate) biases.push_back(layer.moe.e_score_correction_bias);
  }
  for (const MtpWeights& mtp : weights.mtp) biases.push_back(mtp.layer.moe.e_score_correction_bias);
  return biases;
}

}  // namespace

void update_biases(ModelWeights& weights, const ExpertLoad& load, double speed) {
  const std::vector<Tensor> biases = biases_of(weights);
  FATHOM_CHECK(load.size() <= biases.size(), "{} > {}", load.size(), biases.size());
  for (size_t l = 0; l < load.size(); ++l) {
    if (!biases[l]) continue;
    const double mean = mean_load(load[l]);
    for (size_t e = 0; e < load[l].size(); ++e) {
      const auto count = static_cast<double>(load[l][e]);
      const int sign = count < mean ? 1 : count > mean ? -1 : 0;
      biases[l].f32()[e] += static_cast<float>(speed * sign);
    }
  }
}

std::vector<double> max_violations(const ExpertLoad& load) {
  std::vector<double> violations;
  for (const auto& layer : load) {
    const double mean = mean_load(layer), most = static_cast<double>(*std::max_element(layer.begin(), layer.end()));
    violations.push_back(mean > 0 ? most / mean - 1 : 0);
  }
  return violations;
}

double max_violation(const ExpertLoad& load) {
  const std::vector<double> violations = max_violations(load);
  return violations.empty() ? 0 : *std::max_element(violations.begin(), violations.end());
}

bool biases_are_finite(const ModelWeights& weights) {
  for (const Tensor bias : biases_of(weights)) {
    if (bias && !std::all_of(bias.f32(), bias.f32() + bias.size(), [](float b) { return std::isfinite(b); }))
      return false;
  }
  return true;
}

std::vector<std::array<float, 2>> bias_ranges(const ModelWeights& weights) {
  std::vector<std::array<float, 2>> ranges;
  for (const Tensor bias : biases_of(weights)) {
    if (!bias) continue;
    const auto [least, most] = std::minmax_element(bias.f32(), bias.f32() + bias.size());
    ranges.push_back({*least, *most});
  }
  return ranges;
}

}  // namespace fathom
