#include "train/balance.h"

#include <algorithm>
#include <numeric>

namespace fathom {
namespace {

double mean_load(const std::vector<int64_t>& load) {
  const auto sum = std::accumulate(load.begin(), load.end(), int64_t{0});
  return static_cast<double>(sum) / static_cast<double>(load.size());
}

}  // namespace

void update_biases(ModelWeights& weights, const ExpertLoad& load, double speed) {
  std::vector<Tensor> biases;
  for (const LayerWeights& layer : weights.layers) {
    if (layer.moe.gate) biases.push_back(layer.moe.e_score_correction_bias);
  }
  for (const MtpWeights& mtp : weights.mtp) biases.push_back(mtp.layer.moe.e_score_correction_bias);
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

double max_violation(const ExpertLoad& load) {
  double worst = 0;
  for (const auto& layer : load) {
    const double mean = mean_load(layer);
    if (mean > 0)
      worst = std::max(worst, static_cast<double>(*std::max_element(layer.begin(), layer.end())) / mean - 1);
  }
  return worst;
}

}  // namespace fathom
