// Rows of experts on other ranks, there and back, with their gradients: random tokens, a router with groups, and
// experts so narrow that nothing else takes time. To be started by mpirun; rank 0 prints one JSON object: how many rows
// went from rank to rank by the router's choice, and what the exchange counted itself.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/rng.h"
#include "base/terminal.h"
#include "ops/router.h"
#include "parallel/expert_parallel.h"
#include "parallel/programs/over_mpi.h"

namespace fathom {
namespace {

struct Options {
  int64_t hidden = 1024, experts = 32, top_k = 4, groups = 4, topk_groups = 2, tokens = 128, layers = 2;
  int ranks_per_node = 2, ranks_per_host = 2;
  std::string precision = "fp8";
};

constexpr int64_t kInter = 8;  // moe_intermediate_size

Options options_of(int argc, char** argv) {
  Options o;
  CLI::App app("rows of experts, counted");
  app.add_option("--hidden", o.hidden, "");
  app.add_option("--experts", o.experts, "");
  app.add_option("--top-k", o.top_k, "");
  app.add_option("--groups", o.groups, "of experts");
  app.add_option("--topk-groups", o.topk_groups, "to which a token may go");
  app.add_option("--tokens", o.tokens, "of a rank");
  app.add_option("--layers", o.layers, "0: nothing is exchanged");
  app.add_option("--ranks-per-node", o.ranks_per_node, "as fathom is told");
  app.add_option("--ranks-per-host", o.ranks_per_host, "as they are");
  app.add_option("--precision", o.precision, "f32, bf16, fp8");
  app.parse(argc, argv);
  return o;
}

Model model_of(const Options& o) {
  Model model{};
  model.config.hidden_size = o.hidden;
  model.config.moe_intermediate_size = kInter;
  model.config.router.n_routed_experts = o.experts;
  model.config.router.num_experts_per_tok = o.top_k;
  model.config.router.n_group = o.groups;
  model.config.router.topk_group = o.topk_groups;
  model.precision = o.precision == "fp8" ? Precision::fp8 : o.precision == "bf16" ? Precision::bf16 : Precision::f32;
  return model;
}

Tensor random_rows(Context& ctx, Rng& rng, std::initializer_list<int64_t> shape) {
  const Tensor t = new_f32(ctx, shape);
  for (int64_t i = 0; i < t.size(); ++i) t.f32()[i] = static_cast<float>(rng.normal());
  return t;
}

struct Counts {
  std::vector<int64_t> rows;  // [from, to] of the first hop, to other ranks and to itself
  int64_t hosts = 0;          // to which tokens went, summed
};
// A row goes once to the rank with this one's place on every node that has one of the token's experts.
void count_rows(Counts& counts, const Options& o, int rank, int n_ranks, Tensor ids) {
  const int64_t each = o.experts / n_ranks;
  for (int64_t t = 0; t < ids.rows(); ++t) {
    std::set<int64_t> members, hosts;
    for (int64_t k = 0; k < ids.cols(); ++k) {
      const int64_t holder = ids.i32()[t * ids.row_stride + k] / each;
      members.insert(holder / o.ranks_per_node * o.ranks_per_node + rank % o.ranks_per_node);
      hosts.insert(holder / o.ranks_per_host);
    }
    for (const int64_t member : members) ++counts.rows[static_cast<size_t>(rank * n_ranks + member)];
    counts.hosts += std::ssize(hosts);
  }
}

void run(const Options& o, Communicator& comm) {
  const int n = comm.size(), rank = comm.rank();
  std::vector<int> ranks(static_cast<size_t>(n));
  for (int r = 0; r < n; ++r) ranks[static_cast<size_t>(r)] = r;
  const RankGroup all = make_group(comm, ranks, 0);
  const ExpertGroup group = make_expert_group(comm, ranks, o.ranks_per_node, 1);
  const ExpertRange own = experts_of(o.experts, n, rank);

  ThreadPool pool(1);
  Arena arena;
  Context ctx{pool, arena};
  Rng rng(7, static_cast<uint64_t>(rank));
  const Model model = model_of(o);
  MoeWeights w;
  w.gate_up = random_rows(ctx, rng, {own.end - own.first, 2 * kInter, o.hidden});
  w.down = random_rows(ctx, rng, {own.end - own.first, o.hidden, kInter});

  Counts counts{std::vector<int64_t>(static_cast<size_t>(n * n))};
  Traffic traffic;
  PassThread beside(comm);
  int tag = 0;
  barrier(all);
  const double begin = monotonic_s();
  for (int64_t layer = 0; layer < o.layers; ++layer) {
    const ArenaScope scope(arena);
    MoeSaved s;
    s.input = random_rows(ctx, rng, {o.tokens, o.hidden});
    s.logits = random_rows(ctx, rng, {o.tokens, o.experts});
    s.scores = new_f32(ctx, {o.tokens, o.experts});
    s.topk_ids = new_i32(ctx, {o.tokens, o.top_k});
    s.topk_weights = new_f32(ctx, {o.tokens, o.top_k});
    route(ctx, model.config.router, s.topk_ids, s.topk_weights, s.scores, s.logits, {});
    count_rows(counts, o, rank, n, s.topk_ids);
    ExpertsHere here;
    const Tensor out = random_rows(ctx, rng, {o.tokens, o.hidden}), d_out = random_rows(ctx, rng, {o.tokens, o.hidden}),
                 d_input = random_rows(ctx, rng, {o.tokens, o.hidden}), d_weights = new_f32(ctx, {o.tokens, o.top_k});
    StagePass forward = experts_forward(ctx, model, group, w, out, s, here, ctx, beside, tag, traffic);
    finish(forward, comm);
    StagePass backward = experts_backward(ctx, model, group, w, d_input, d_weights, d_out, here, beside, tag, traffic);
    finish(backward, comm);
  }
  barrier(all);
  const double seconds = monotonic_s() - begin;
  std::vector<int64_t> across(static_cast<size_t>(n)), within(across), hosts{counts.hosts};
  across[static_cast<size_t>(rank)] = traffic.across_nodes;
  within[static_cast<size_t>(rank)] = traffic.within_node;
  for (std::vector<int64_t>* values : {&counts.rows, &across, &within, &hosts}) sum_over(all, std::span(*values));
  if (rank == 0) {
    const double n_tokens = static_cast<double>(o.tokens * o.layers * n);
    std::cout << nlohmann::json{{"rows", counts.rows},
                                {"across_nodes", across},
                                {"within_node", within},
                                {"hosts_a_token", n_tokens > 0 ? static_cast<double>(hosts[0]) / n_tokens : 0},
                                {"seconds", seconds}}
                     .dump()
              << std::endl;
  }
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  fathom::test::over_mpi("expert_probe",
                         [&](fathom::Communicator& comm) { fathom::run(fathom::options_of(argc, argv), comm); });
}
