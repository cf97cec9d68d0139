// Experts spread over ranks that serve: the bits of one process, wherever they are and whoever asks.
#include "parallel/spread_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/rng.h"
#include "model/tiny_models.h"
#include "parallel/in_process_ranks.h"

namespace fathom {
namespace {

// A model, and two sequences of every rank, of which some have none.
struct Case {
  ModelConfig config = tiny_v3();
  Parameters parameters;
  Case() {
    parameters = allocate_parameters(config);
    initialize(parameters, config, 7);
  }
  std::vector<std::vector<int32_t>> sequences(int rank, int round) const {
    std::vector<std::vector<int32_t>> all;
    if ((rank + round) % 3 == 2) return all;
    Rng rng(static_cast<uint64_t>(100 * round + rank));
    for (int s = 0; s < 2; ++s) {
      std::vector<int32_t>& ids = all.emplace_back(1 + rng.below(9));
      for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size)));
    }
    return all;
  }
};

std::vector<float> hidden_of(Context& ctx, const Model& model, const std::vector<std::vector<int32_t>>& sequences) {
  const ArenaScope scope(ctx.arena);
  const Tensor hidden = forward(ctx, model, make_batch(ctx, sequences));
  return {hidden.f32(), hidden.f32() + hidden.size()};
}

ExpertLoad skewed_load(const ModelConfig& config, uint64_t seed) {
  ExpertLoad load;
  Rng rng(seed);
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    if (!config.is_moe(l)) continue;
    for (int64_t e = 0; e < config.router.n_routed_experts; ++e) {
      if (e == 0) load.emplace_back();
      load.back().push_back(static_cast<int64_t>(rng.below(100) * rng.below(100)));
    }
  }
  return load;
}

TEST(SpreadExperts, GiveTheBitsOfOneProcess) {
  const Case c;
  for (const auto& layout : {std::pair(2, 0), {4, 0}, {2, 2}, {4, 4}}) {
    const int n_ranks = layout.first, copies = layout.second;
    test::on_ranks(n_ranks, [&](Communicator& comm) {
      ThreadPool pool(1);
      Arena arena;
      Context ctx{pool, arena};
      const Model alone = make_model(c.config, c.parameters.weights);
      Model model = make_model(c.config, c.parameters.weights);
      SpreadExperts experts(comm, model, {.redundant_experts = copies, .ranks_per_node = n_ranks / 2});
      for (int round = 0; round < 6; ++round) {
        const auto sequences = c.sequences(comm.rank(), round);
        if (sequences.empty()) {
          experts.join_pass(ctx);
        } else {
          EXPECT_EQ(hidden_of(ctx, model, sequences), hidden_of(ctx, alone, sequences))
              << "rank " << comm.rank() << " of " << n_ranks << ", round " << round;
        }
        EXPECT_EQ(experts.any(comm.rank() == round), round < n_ranks);
        // They move, and nothing changes.
        experts.place(experts.placements_for(skewed_load(c.config, static_cast<uint64_t>(round))));
      }
    });
  }
}

TEST(SpreadExperts, MoveToWhereTheyAreBalanced) {
  const Case c;
  test::on_ranks(4, [&](Communicator& comm) {
    Model model = make_model(c.config, c.parameters.weights);
    SpreadExperts experts(comm, model, {.redundant_experts = 4});
    const ExpertLoad load = skewed_load(c.config, 1);
    const auto placements = experts.placements_for(load);
    EXPECT_LT(experts.worst_load(load, placements), experts.worst_load(load, experts.placements()));
    const int64_t layers = std::ssize(placements) + c.config.num_nextn_predict_layers;
    EXPECT_LE(experts.n_experts_here(), layers * (c.config.router.n_routed_experts + 4) / 4);
  });
}

TEST(SpreadExperts, AreRefusedWhereTheyCannotBeDealtOut) {
  const Case c;  // tiny: a power of two of experts
  EXPECT_THROW(check_spread(c.config, 3, {}), UsageError);
  EXPECT_NO_THROW(check_spread(c.config, 2, {}));
  EXPECT_THROW(check_spread(c.config, 4, {.ranks_per_node = 3}), UsageError);
  EXPECT_THROW(check_spread(c.config, 2, {.redundant_experts = 1 << 20}), UsageError);
}

}  // namespace
}  // namespace fathom
