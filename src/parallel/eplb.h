// Where copies of experts go, so that GPUs have the same to do (V3 section 3.4): experts that are asked for most get
// more copies, and copies are packed so that the loads of GPUs come out alike.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

struct ExpertPlacement {
  std::vector<int> physical_to_logical;  // [replica]: whose copy it is; GPU g has those from g * replicas / gpus on
  std::vector<std::vector<int>> logical_to_physical;  // [expert]: its copies, in the order in which they were made
};

struct PlacementShape {
  int n_replicas = 0;  // of all experts together, a multiple of n_gpus
  int n_group = 1;     // of experts, as the router has them
  int n_nodes = 1, n_gpus = 1;
};

// Of one layer, from its experts' loads (tokens, or anything that adds up). Where the nodes divide the groups, whole
// groups stay on a node, so that a token that goes to few groups goes to few nodes; else the layer is placed as if
// there were one group and one node. Ties go to the first. Error for numbers that do not divide each other, and loads
// that are negative or not finite.
ExpertPlacement place_experts(const std::vector<double>& load, const PlacementShape& shape);

// The largest load of a GPU over the mean of all, where an expert's copies share its load evenly; 1 without any load.
double max_over_mean_load(const std::vector<double>& load, const ExpertPlacement& placement, int n_gpus);

}  // namespace fathom
