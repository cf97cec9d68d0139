#include "train/sample_text.h"

#include <algorithm>
#include <cmath>

namespace fathom {
namespace {

int32_t draw(std::span<const float> logits, double temperature, Rng& rng) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (temperature <= 0) return static_cast<int32_t>(best - logits.begin());
  std::vector<double> weights;
  double sum = 0;
  for (const float logit : logits) sum += weights.emplace_back(std::exp((logit - *best) / temperature));
  double left = rng.uniform() * sum;
  for (size_t id = 0; id < weights.size(); ++id) {
    left -= weights[id];
    if (left < 0) return static_cast<int32_t>(id);
  }
  return static_cast<int32_t>(best - logits.begin());
}

}  // namespace

std::vector<int32_t> sample_ids(Context& ctx, const Model& model, std::span<const int32_t> prompt, int64_t n,
                                double temperature, Rng& rng) {
  FATHOM_CHECK(!prompt.empty());
  const int64_t context = model.config.max_position_embeddings;
  const auto prompt_size = static_cast<int64_t>(prompt.size());
  LatentCache cache = make_latent_cache(model.config, std::min(context, prompt_size + n));
  LatentCache* const caches[] = {&cache};
  std::vector<int32_t> fresh(prompt.begin(), prompt.end()), out;
  const auto& ends = model.config.eos_token_ids;
  while (static_cast<int64_t>(out.size()) < n && cache.length + static_cast<int64_t>(fresh.size()) <= cache.capacity) {
    const ArenaScope scope(ctx.arena);
    const int64_t first_position[] = {cache.length};
    const std::vector<int32_t> sequences[] = {fresh};
    const Batch batch = make_batch(ctx, sequences, first_position);
    const Tensor hidden = forward(ctx, model, batch, {.caches = caches});
    const Tensor logits = head_logits(ctx, model, hidden.slice(hidden.rows() - 1, 1));
    const int32_t id = draw({logits.f32(), static_cast<size_t>(logits.size())}, temperature, rng);
    if (std::find(ends.begin(), ends.end(), id) != ends.end()) break;
    out.push_back(id);
    fresh = {id};
  }
  return out;
}

}  // namespace fathom
