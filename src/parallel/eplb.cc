#include "parallel/eplb.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace fathom {
namespace {

// Items into packs of equally many: by falling weight, each into the lightest pack that has room. Returns the items of
// each pack in the order in which they came. One item a pack: in their order.
std::vector<std::vector<int>> pack_evenly(const std::vector<double>& weight, int n_packs) {
  const size_t per_pack = weight.size() / static_cast<size_t>(n_packs);
  std::vector<std::vector<int>> packs(static_cast<size_t>(n_packs));
  std::vector<int> order(weight.size());
  std::iota(order.begin(), order.end(), 0);
  if (per_pack > 1) {
    // Copies of an expert weigh the same: whichever comes first, GPUs get the same. std::sort has the published order.
    std::sort(order.begin(), order.end(),
              [&](int a, int b) { return weight[static_cast<size_t>(a)] > weight[static_cast<size_t>(b)]; });
  }
  std::vector<double> sums(packs.size());
  for (size_t i = 0; i < order.size(); ++i) {
    size_t best = packs.size();
    for (size_t p = 0; p < packs.size(); ++p) {
      if (packs[p].size() < per_pack && (best == packs.size() || sums[p] < sums[best])) best = p;
    }
    if (per_pack == 1) best = i;
    packs[best].push_back(order[i]);
    sums[best] += weight[static_cast<size_t>(order[i])];
  }
  return packs;
}

// Copies of experts: one each, and each further one of that whose copies have most to do.
struct Copies {
  std::vector<int> expert;  // [copy]
  std::vector<int> rank;    // [copy]: which of its expert's copies it is
  std::vector<int> n;       // [expert]
};
Copies make_copies(const std::vector<double>& load, int n_copies) {
  Copies copies{{}, std::vector<int>(static_cast<size_t>(n_copies)), std::vector<int>(load.size(), 1)};
  copies.expert.resize(load.size());
  std::iota(copies.expert.begin(), copies.expert.end(), 0);
  for (auto copy = load.size(); copy < static_cast<size_t>(n_copies); ++copy) {
    size_t most = 0;
    for (size_t e = 1; e < load.size(); ++e) {
      if (load[e] / copies.n[e] > load[most] / copies.n[most]) most = e;
    }
    copies.expert.push_back(static_cast<int>(most));
    copies.rank[copy] = copies.n[most]++;
  }
  return copies;
}

void check(const std::vector<double>& load, const PlacementShape& s) {
  const auto n_experts = static_cast<int>(load.size());
  const auto divides = [](int a, int b) { return a > 0 && b > 0 && b % a == 0; };
  if (!divides(s.n_gpus, s.n_replicas)) {
    throw Error("{} copies of experts cannot be dealt out evenly to {} GPUs", s.n_replicas, s.n_gpus);
  }
  if (!divides(s.n_nodes, s.n_gpus)) throw Error("{} GPUs are not evenly on {} nodes", s.n_gpus, s.n_nodes);
  if (!divides(s.n_group, n_experts)) throw Error("{} experts are not evenly in {} groups", n_experts, s.n_group);
  if (s.n_replicas < n_experts) throw Error("{} experts do not go into {} copies", n_experts, s.n_replicas);
  if (!std::all_of(load.begin(), load.end(), [](double x) { return x >= 0 && std::isfinite(x); })) {
    throw Error("the load of an expert is a number from 0 on");
  }
}

}  // namespace

ExpertPlacement place_experts(const std::vector<double>& load, const PlacementShape& shape) {
  check(load, shape);
  PlacementShape s = shape;
  if (s.n_group % s.n_nodes != 0) s.n_group = s.n_nodes = 1;
  const size_t group_size = load.size() / static_cast<size_t>(s.n_group);
  const auto n_nodes = static_cast<size_t>(s.n_nodes);
  // Groups to nodes,
  std::vector<double> of_group(static_cast<size_t>(s.n_group));
  for (size_t e = 0; e < load.size(); ++e) of_group[e / group_size] += load[e];
  const std::vector<std::vector<int>> groups = pack_evenly(of_group, s.n_nodes);

  ExpertPlacement placement{std::vector<int>(static_cast<size_t>(s.n_replicas)),
                            std::vector<std::vector<int>>(load.size())};
  size_t physical = 0;
  for (size_t node = 0; node < n_nodes; ++node) {
    std::vector<int> experts;
    for (const int group : groups[node]) {
      for (size_t i = 0; i < group_size; ++i)
        experts.push_back(group * static_cast<int>(group_size) + static_cast<int>(i));
    }
    std::vector<double> of_node;
    for (const int e : experts) of_node.push_back(load[static_cast<size_t>(e)]);
    // copies inside each node,
    const Copies copies = make_copies(of_node, s.n_replicas / s.n_nodes);
    std::vector<double> of_copy;
    for (const int e : copies.expert) {
      of_copy.push_back(of_node[static_cast<size_t>(e)] / copies.n[static_cast<size_t>(e)]);
    }
    // copies to its GPUs.
    for (const std::vector<int>& gpu : pack_evenly(of_copy, s.n_gpus / s.n_nodes)) {
      for (const int copy : gpu) {
        const auto local = static_cast<size_t>(copies.expert[static_cast<size_t>(copy)]);
        const auto expert = static_cast<size_t>(experts[local]);
        std::vector<int>& places = placement.logical_to_physical[expert];
        places.resize(static_cast<size_t>(copies.n[local]));
        places[static_cast<size_t>(copies.rank[static_cast<size_t>(copy)])] = static_cast<int>(physical);
        placement.physical_to_logical[physical++] = static_cast<int>(expert);
      }
    }
  }
  return placement;
}

double max_over_mean_load(const std::vector<double>& load, const ExpertPlacement& placement, int n_gpus) {
  std::vector<double> of_gpu(static_cast<size_t>(n_gpus));
  const size_t per_gpu = placement.physical_to_logical.size() / of_gpu.size();
  for (size_t p = 0; p < placement.physical_to_logical.size(); ++p) {
    const auto e = static_cast<size_t>(placement.physical_to_logical[p]);
    of_gpu[p / per_gpu] += load[e] / static_cast<double>(placement.logical_to_physical[e].size());
  }
  const double sum = std::accumulate(of_gpu.begin(), of_gpu.end(), 0.0);
  return sum > 0 ? *std::max_element(of_gpu.begin(), of_gpu.end()) * n_gpus / sum : 1;
}

}  // namespace fathom
