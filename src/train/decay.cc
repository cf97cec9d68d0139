#include "train/decay.h"

#include <algorithm>

namespace fathom {

std::vector<DecayRun> decay_runs(const Parameters& parameters, const ModelConfig& config) {
  struct Piece {
    const float* data;
    bool decays;
  };
  std::vector<Piece> pieces;
  for_each_tensor(parameters.weights, config, [&](const NamedTensor& t) {
    const bool embedding = t.view.data == parameters.weights.embed.data;
    if (t.trained) pieces.push_back({t.view.f32(), t.view.rank >= 2 && !embedding});
  });
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.data < b.data; });
  const std::span<float> all = parameters.trained();
  std::vector<DecayRun> runs;
  for (const Piece& piece : pieces) {
    const auto begin = static_cast<size_t>(piece.data - all.data());
    if (!runs.empty() && runs.back().decays == piece.decays) continue;
    if (!runs.empty()) runs.back().size = begin - runs.back().begin;
    runs.push_back({begin, all.size() - begin, piece.decays});
  }
  return runs;
}

}  // namespace fathom
