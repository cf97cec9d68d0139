#include "ops/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/cpu/activation_kernels.h"
#include "ops/cpu/isa.h"
#include "ops/device.h"
#include "ops/embedding.h"
#include "ops/grain.h"

namespace fathom {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int64_t kLossBlock = 128;  // tokens of a sequence summed in one go by the balance loss

const cpu::ActivationKernels& kernels() {
  return cpu::choose(cpu::baseline::activation_kernels, cpu::avx2::activation_kernels, cpu::avx512::activation_kernels);
}

float nan_as_lowest(float x) { return x == x ? x : kLowest; }

// The k best of n values, ids ascending; equal values: the lower id. NaN counts as the worst.
// best: k values of scratch.
void choose_topk(const float* values, int64_t n, int64_t k, int32_t* ids, float* best) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value = nan_as_lowest(values[i]);
    if (found == k && !(value > best[k - 1])) continue;
    int64_t place = found < k ? found++ : k - 1;
    for (; place > 0 && value > best[place - 1]; --place) {
      best[place] = best[place - 1];
      ids[place] = ids[place - 1];
    }
    best[place] = value;
    ids[place] = static_cast<int32_t>(i);
  }
  std::sort(ids, ids + k);
}

// A group's rank among the groups: its largest score (V2), or the sum of its two largest biased scores (V3).
float group_score(TopkMethod method, const float* scores, int64_t n) {
  float first = kLowest, second = kLowest;
  for (int64_t i = 0; i < n; ++i) {
    const float score = nan_as_lowest(scores[i]);
    second = std::max(second, std::min(first, score));
    first = std::max(first, score);
  }
  return method == TopkMethod::noaux_tc && n > 1 ? first + second : first;
}

// What one task needs to choose experts.
struct Scratch {
  explicit Scratch(const RouterConfig& config)
      : choice(config.n_routed_experts),
        best(std::max(config.num_experts_per_tok, config.topk_group)),
        groups(config.n_group),
        kept(config.topk_group) {}
  std::vector<float> choice, best, groups;
  std::vector<int32_t> kept;
};

// Puts out of reach the experts of all but the topk_group best groups.
void drop_groups(const RouterConfig& config, Scratch& s) {
  const int64_t group_size = config.n_routed_experts / config.n_group;
  for (int64_t g = 0; g < config.n_group; ++g) {
    s.groups[g] = group_score(config.method, s.choice.data() + g * group_size, group_size);
  }
  choose_topk(s.groups.data(), config.n_group, config.topk_group, s.kept.data(), s.best.data());
  for (int64_t g = 0; g < config.n_group; ++g) {
    if (!std::binary_search(s.kept.begin(), s.kept.end(), static_cast<int32_t>(g))) {
      std::fill_n(s.choice.begin() + g * group_size, group_size, kLowest);
    }
  }
}

void check_shapes(const RouterConfig& config, Tensor matrix, int64_t tokens) {
  const int64_t experts = config.n_routed_experts, groups = config.n_group;
  FATHOM_CHECK(matrix.rows() == tokens && matrix.cols() == experts);
  FATHOM_CHECK(config.num_experts_per_tok >= 1 && config.num_experts_per_tok <= experts);
  FATHOM_CHECK(groups >= 1 && experts % groups == 0 && config.topk_group >= 1 && config.topk_group <= groups);
}

int32_t* id_row(Tensor ids, int64_t t) { return ids.i32() + t * ids.row_stride; }

auto score_kernel(const RouterConfig& config) {
  return config.scoring == Scoring::sigmoid ? kernels().sigmoid : kernels().softmax;
}

// The gate values of a token's experts, from its scores.
void weigh(const RouterConfig& config, Tensor topk_weights, int64_t t, const float* scores, const int32_t* ids) {
  const int64_t k = config.num_experts_per_tok;
  float sum = 1e-20f;
  for (int64_t j = 0; j < k; ++j) sum += scores[ids[j]];
  for (int64_t j = 0; j < k; ++j) {
    const float gate = config.norm_topk_prob ? scores[ids[j]] / sum : scores[ids[j]];
    topk_weights.f32(t, j) = gate * config.routed_scaling_factor;
  }
}

}  // namespace

void route(Context& ctx, const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores, Tensor logits,
           Tensor bias) {
  const int64_t tokens = logits.rows(), experts = config.n_routed_experts, k = config.num_experts_per_tok;
  check_shapes(config, logits, tokens);
  check_shapes(config, scores, tokens);
  FATHOM_CHECK(topk_ids.rows() == tokens && topk_ids.cols() == k);
  FATHOM_CHECK(topk_weights.rows() == tokens && topk_weights.cols() == k);
  FATHOM_CHECK(!bias || (bias.size() == experts && bias.contiguous()));
  if (ctx.device != nullptr) {
    return ctx.device->operators.route(ctx, config, topk_ids, topk_weights, scores, logits, bias);
  }
  const bool biased = config.method == TopkMethod::noaux_tc && bias;
  const bool grouped = config.method != TopkMethod::greedy && config.n_group > 1;
  const auto score_row = score_kernel(config);

  ctx.pool.parallel_for(0, tokens, row_grain(8 * experts), [&](int64_t begin, int64_t end) {
    Scratch scratch(config);
    for (int64_t t = begin; t < end; ++t) {
      float* s = scores.f32_row(t);
      score_row(s, logits.f32_row(t), experts);
      for (int64_t e = 0; e < experts; ++e) scratch.choice[e] = biased ? s[e] + bias.f32()[e] : s[e];
      if (grouped) drop_groups(config, scratch);
      int32_t* ids = id_row(topk_ids, t);
      choose_topk(scratch.choice.data(), experts, k, ids, scratch.best.data());

      weigh(config, topk_weights, t, s, ids);
    }
  });
}

void weigh_chosen(Context& ctx, const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores,
                  Tensor logits) {
  const int64_t tokens = logits.rows(), experts = config.n_routed_experts, k = config.num_experts_per_tok;
  check_shapes(config, logits, tokens);
  check_shapes(config, scores, tokens);
  FATHOM_CHECK(topk_ids.rows() == tokens && topk_ids.cols() == k);
  FATHOM_CHECK(topk_weights.rows() == tokens && topk_weights.cols() == k);
  if (ctx.device != nullptr) {
    return ctx.device->operators.weigh_chosen(ctx, config, topk_ids, topk_weights, scores, logits);
  }
  const auto score_row = score_kernel(config);
  ctx.pool.parallel_for(0, tokens, row_grain(8 * experts), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      score_row(scores.f32_row(t), logits.f32_row(t), experts);
      weigh(config, topk_weights, t, scores.f32_row(t), id_row(topk_ids, t));
    }
  });
}

void route_backward(Context& ctx, const RouterConfig& config, Tensor d_logits, Tensor d_weights, Tensor topk_ids,
                    Tensor scores, Tensor d_scores) {
  const int64_t tokens = scores.rows(), experts = config.n_routed_experts, k = config.num_experts_per_tok;
  check_shapes(config, scores, tokens);
  check_shapes(config, d_logits, tokens);
  if (d_scores) check_shapes(config, d_scores, tokens);
  FATHOM_CHECK(topk_ids.rows() == tokens && topk_ids.cols() == k);
  FATHOM_CHECK(d_weights.rows() == tokens && d_weights.cols() == k);
  if (ctx.device != nullptr) {
    return ctx.device->operators.route_backward(ctx, config, d_logits, d_weights, topk_ids, scores, d_scores);
  }

  ctx.pool.parallel_for(0, tokens, row_grain(2 * experts), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* s = scores.f32_row(t);
      const int32_t* ids = id_row(topk_ids, t);
      float* dz = d_logits.f32_row(t);  // dL/d(scores) first
      if (d_scores) {
        std::copy_n(d_scores.f32_row(t), experts, dz);
      } else {
        std::fill_n(dz, experts, 0.0f);
      }
      // Gates s_j / sum: d s_j = (d_j - sum_i d_i s_i / sum) / sum.
      float sum = 1, mean = 0;
      if (config.norm_topk_prob) {
        double total = 1e-20, dot = 0;
        for (int64_t j = 0; j < k; ++j) {
          total += s[ids[j]];
          dot += static_cast<double>(d_weights.f32(t, j)) * s[ids[j]];
        }
        sum = static_cast<float>(total);
        mean = static_cast<float>(dot / total);
      }
      for (int64_t j = 0; j < k; ++j) {
        dz[ids[j]] += config.routed_scaling_factor * (d_weights.f32(t, j) - mean) / sum;
      }
      if (config.scoring == Scoring::sigmoid) {
        for (int64_t e = 0; e < experts; ++e) dz[e] *= s[e] * (1 - s[e]);
      } else {
        double expected = 0;
        for (int64_t e = 0; e < experts; ++e) expected += static_cast<double>(dz[e]) * s[e];
        for (int64_t e = 0; e < experts; ++e) dz[e] = s[e] * (dz[e] - static_cast<float>(expected));
      }
    }
  });
}

void count_expert_load(Tensor load, Tensor topk_ids) {
  FATHOM_CHECK(load.format == Format::i64);
  int64_t* count = load.as<int64_t>();
  for (int64_t t = 0; t < topk_ids.rows(); ++t) {
    for (int64_t j = 0; j < topk_ids.cols(); ++j) ++count[id_row(topk_ids, t)[j]];
  }
}

namespace {

// The host computes it: a few numbers of each token, for runs that balance by a loss.
double balance_loss_of_device(Context& ctx, const RouterConfig& config, Tensor d_scores, Tensor scores,
                              Tensor seq_offsets, double alpha, double gradient_scale) {
  Arena arena;
  Context host{ctx.pool, arena};
  Buffer scores_memory, offsets_memory;
  const Tensor here = on_host(ctx, scores, scores_memory);
  const Tensor d_here = new_f32(host, {here.rows(), here.cols()});
  fill_zero(host, d_here);
  const double loss = sequence_balance_loss(host, config, d_here, here, on_host(ctx, seq_offsets, offsets_memory),
                                            alpha, gradient_scale);
  const ArenaScope scope(ctx.arena);
  const Tensor added = new_f32(ctx, {here.rows(), here.cols()});
  upload_where(ctx.device, added.data, d_here.data, static_cast<size_t>(d_here.size_bytes()));
  add(ctx, d_scores, d_scores, added);
  return loss;
}

}  // namespace

double sequence_balance_loss(Context& ctx, const RouterConfig& config, Tensor d_scores, Tensor scores,
                             Tensor seq_offsets, double alpha, double gradient_scale) {
  if (ctx.device != nullptr) {
    return balance_loss_of_device(ctx, config, d_scores, scores, seq_offsets, alpha, gradient_scale);
  }
  const int64_t tokens = scores.rows(), experts = config.n_routed_experts, k = config.num_experts_per_tok;
  const int64_t sequences = seq_offsets.size() - 1;
  check_shapes(config, scores, tokens);
  check_shapes(config, d_scores, tokens);
  const int32_t* offsets = seq_offsets.i32();
  FATHOM_CHECK(sequences >= 0 && offsets[0] == 0 && offsets[sequences] == tokens);

  // Blocks of tokens that do not cross a sequence, each with its own sums.
  struct Block {
    int64_t sequence, begin, end;
  };
  std::vector<Block> blocks;
  for (int64_t q = 0; q < sequences; ++q) {
    FATHOM_CHECK(offsets[q] <= offsets[q + 1]);
    for (int64_t t = offsets[q]; t < offsets[q + 1]; t += kLossBlock) {
      blocks.push_back({q, t, std::min<int64_t>(offsets[q + 1], t + kLossBlock)});
    }
  }
  const auto n_blocks = static_cast<int64_t>(blocks.size());
  const ArenaScope scope(ctx.arena);
  const Tensor block_counts = new_f32(ctx, {n_blocks, experts});  // #{t: i in top-k}
  const Tensor block_shares = new_f32(ctx, {n_blocks, experts});  // sum_t s_i / sum_j s_j
  const Tensor totals = new_f32(ctx, {tokens});                   // sum_j s_j
  ctx.pool.run(n_blocks, [&](int64_t b, int) {
    std::vector<float> best(k);
    std::vector<int32_t> ids(k);
    float* counts = block_counts.f32_row(b);
    float* shares = block_shares.f32_row(b);
    std::fill_n(counts, experts, 0.0f);
    std::fill_n(shares, experts, 0.0f);
    for (int64_t t = blocks[b].begin; t < blocks[b].end; ++t) {
      const float* s = scores.f32_row(t);
      choose_topk(s, experts, k, ids.data(), best.data());
      for (const int32_t e : ids) counts[e] += 1;
      double total = 0;
      for (int64_t e = 0; e < experts; ++e) total += s[e];
      totals.f32()[t] = static_cast<float>(total);
      for (int64_t e = 0; e < experts; ++e) shares[e] += s[e] / totals.f32()[t];
    }
  });

  const Tensor fractions = new_f32(ctx, {std::max<int64_t>(1, sequences), experts});  // f_i
  double loss = 0;
  for (int64_t q = 0, b = 0; q < sequences; ++q) {
    std::vector<double> counts(experts, 0), shares(experts, 0);
    const double length = offsets[q + 1] - offsets[q];
    for (; b < n_blocks && blocks[b].sequence == q; ++b) {
      for (int64_t e = 0; e < experts; ++e) {
        counts[e] += block_counts.f32(b, e);
        shares[e] += block_shares.f32(b, e);
      }
    }
    if (length == 0) continue;
    for (int64_t e = 0; e < experts; ++e) {
      const double fraction = static_cast<double>(experts) / (static_cast<double>(k) * length) * counts[e];
      fractions.f32(q, e) = static_cast<float>(fraction);
      loss += alpha * fraction * shares[e] / length;
    }
  }

  // dL/ds_j = alpha / (T * total) * (f_j - sum_i f_i s_i / total)
  ctx.pool.run(n_blocks, [&](int64_t b, int) {
    const int64_t q = blocks[b].sequence;
    const float* f = fractions.f32_row(q);
    for (int64_t t = blocks[b].begin; t < blocks[b].end; ++t) {
      const float* s = scores.f32_row(t);
      const double total = totals.f32()[t];
      double mean = 0;
      for (int64_t e = 0; e < experts; ++e) mean += static_cast<double>(f[e]) * s[e];
      mean /= total;
      const auto scale = static_cast<float>(gradient_scale * alpha / (offsets[q + 1] - offsets[q]) / total);
      for (int64_t e = 0; e < experts; ++e) d_scores.f32(t, e) += scale * (f[e] - static_cast<float>(mean));
    }
  });
  return loss;
}

}  // namespace fathom
