#include "model/expert_reading.h"

#include <vector>

#include "base/residency.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace fathom {
namespace {

std::span<const std::byte> bytes_of(Tensor w) {
  return {static_cast<const std::byte*>(w.data), static_cast<size_t>(w.size_bytes())};
}

// Starts reading what these experts lack, and says how much of them there is and was.
ExpertBytes read_experts(const ExpertReading& reading, const MoeWeights& w, Tensor topk_ids) {
  std::vector<bool> wanted(static_cast<size_t>(w.gate_up.shape[0]));
  for (int64_t t = 0; t < topk_ids.rows(); ++t) {
    for (int64_t i = 0; i < topk_ids.cols(); ++i) {
      wanted[static_cast<size_t>(topk_ids.i32()[t * topk_ids.row_stride + i])] = true;
    }
  }
  ExpertBytes bytes;
  int64_t ahead = 0;
  for (size_t e = 0; e < wanted.size(); ++e) {
    if (!wanted[e]) continue;
    for (const Tensor& matrices : {w.gate_up, w.down}) {
      const auto expert = bytes_of(matrices[static_cast<int64_t>(e)]);
      const auto size = static_cast<int64_t>(expert.size());
      const int64_t resident = reading.counts ? resident_bytes(expert) : 0;
      bytes.chosen += size;
      bytes.resident += resident;
      if (resident == size || ahead + size > reading.max_bytes_ahead) continue;
      ahead += size;
      read_ahead(expert);
    }
  }
  return bytes;
}

}  // namespace

void read_chosen(ExpertReading& reading, const MoeWeights& w, Tensor topk_ids) {
  const ExpertBytes bytes = read_experts(reading, w, topk_ids);
  reading.seen.chosen += bytes.chosen;
  reading.seen.resident += bytes.resident;
}

void read_predicted(Context& ctx, ExpertReading& reading, const ModelConfig& config, const LayerWeights& next,
                    Tensor x) {
  const int64_t tokens = x.rows(), k = config.router.num_experts_per_tok, experts = config.router.n_routed_experts;
  if (!next.moe.gate || tokens * k >= experts) return;
  const ArenaScope scope(ctx.arena);
  const Tensor normed = new_f32(ctx, {tokens, x.cols()}), rms = new_f32(ctx, {tokens});
  const Tensor logits = new_f32(ctx, {tokens, experts}), scores = new_f32(ctx, {tokens, experts});
  const Tensor topk_ids = new_i32(ctx, {tokens, k}), topk_weights = new_f32(ctx, {tokens, k});
  rms_norm(ctx, normed, x, next.post_attention_norm, static_cast<float>(config.rms_norm_eps), rms);
  linear(ctx, logits, normed, next.moe.gate);
  route(ctx, config.router, topk_ids, topk_weights, scores, logits, next.moe.e_score_correction_bias);
  read_experts(reading, next.moe, topk_ids);
}

}  // namespace fathom
