#include "parallel/eplb.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace fathom {
namespace {

using nlohmann::json;

// The published example and placements of the published implementation (tests/data/parallel).
TEST(Eplb, PlacesAsThePublishedImplementation) {
  std::ifstream file(FATHOM_TEST_DATA "/parallel/eplb.vectors.jsonl");
  int n = 0;
  for (std::string line; std::getline(file, line); ++n) {
    SCOPED_TRACE(n);
    const json expected = json::parse(line);
    const PlacementShape shape{expected["num_replicas"], expected["num_groups"], expected["num_nodes"],
                               expected["num_gpus"]};
    for (size_t layer = 0; layer < expected["weight"].size(); ++layer) {
      const std::vector<double> load = expected["weight"][layer];
      const ExpertPlacement placement = place_experts(load, shape);
      EXPECT_EQ(json(placement.physical_to_logical), expected["physical_to_logical"][layer]);
      for (size_t e = 0; e < load.size(); ++e) {
        std::vector<int> copies = expected["logical_to_physical"][layer][e];
        std::erase(copies, -1);
        EXPECT_EQ(placement.logical_to_physical[e], copies);
        EXPECT_EQ(json(copies.size()), expected["expert_count"][layer][e]);
      }
      EXPECT_NEAR(max_over_mean_load(load, placement, shape.n_gpus), expected["max_over_mean_gpu_load"][layer], 1e-6);
    }
  }
  EXPECT_EQ(n, 29);
}

TEST(Eplb, OneCopyAGpuAndNoLoad) {
  const ExpertPlacement placement = place_experts({3, 1, 2, 5}, {4, 1, 1, 4});
  EXPECT_THAT(placement.physical_to_logical, testing::ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(max_over_mean_load({0, 0}, place_experts({0, 0}, {2, 1, 1, 2}), 2), 1);
}

TEST(Eplb, RefusesWhatDoesNotDivide) {
  const std::vector<double> load(8, 1);
  EXPECT_THROW(place_experts(load, {10, 2, 1, 4}), Error);  // copies to GPUs
  EXPECT_THROW(place_experts(load, {12, 2, 3, 4}), Error);  // GPUs to nodes
  EXPECT_THROW(place_experts(load, {12, 3, 1, 4}), Error);  // experts to groups
  EXPECT_THROW(place_experts(load, {4, 2, 1, 4}), Error);   // fewer copies than experts
  EXPECT_THROW(place_experts(load, {0, 0, 0, 0}), Error);
  EXPECT_THROW(place_experts({}, {4, 1, 1, 4}), Error);
  EXPECT_THROW(place_experts({1, -1}, {2, 1, 1, 1}), Error);
  EXPECT_THROW(place_experts({1, std::numeric_limits<double>::quiet_NaN()}, {2, 1, 1, 1}), Error);
}

}  // namespace
}  // namespace fathom
