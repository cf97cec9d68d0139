#include "model/loss.h"

#include <algorithm>

#include "ops/device.h"
#include "ops/embedding.h"

namespace fathom {
namespace {

// Where the host computes some of a device's experts, it counts on its own.
ExpertLoad* wanted_load(const Model& model, LossResult& result) {
  return model.host_experts == nullptr ? &result.expert_load : nullptr;
}

// Offsets that make one sequence of all tokens.
Tensor whole_batch(Context& ctx, const Batch& batch) {
  return from_host(ctx, std::vector<int32_t>{0, static_cast<int32_t>(batch.n_tokens())});
}

// The summed loss of what the head makes of `hidden`.
double head_loss(Context& ctx, const Model& model, Tensor hidden, const Targets& targets) {
  const ArenaScope scope(ctx.arena);
  const Tensor losses = new_f32(ctx, {hidden.rows()});
  head_cross_entropy(ctx, losses, hidden, model.weights.head, targets.main);
  return sum_of_losses(ctx, losses);
}

double per(int64_t n) { return n > 0 ? 1.0 / static_cast<double>(n) : 0; }

// What module number m, from 1, predicts behind each token of `next`: the token behind it, where that is among the
// trunk's targets, main.
Targets mtp_targets(Context& ctx, const Batch& batch, const int32_t* main, const Batch& next, int32_t m) {
  Targets targets{};
  std::vector<int32_t> ids(next.tokens.size(), kNoTarget);
  for (size_t q = 0; q + 1 < next.offsets.size(); ++q) {
    const int32_t begin = next.offsets[q], end = next.offsets[q + 1];
    for (int32_t t = begin; t + 1 < end; ++t) {
      if (main[batch.offsets[q] + m + t - begin] == kNoTarget) continue;
      ids[static_cast<size_t>(t)] = next.tokens[static_cast<size_t>(t) + 1];
      ++targets.n_main;
    }
  }
  targets.main = from_host(ctx, ids);
  return targets;
}

}  // namespace

void main_loss_backward(Context& ctx, Tensor losses, Tensor d_hidden, Tensor d_head, Tensor hidden, Tensor head,
                        const Targets& targets, double scale, Tensor row_scales, const SamplingMask* mask,
                        LossResult& result) {
  const auto gradient_scale = static_cast<float>(scale);
  if (!targets.teacher.ids) {
    return head_cross_entropy_backward(ctx, losses, d_hidden, d_head, hidden, head, targets.main, gradient_scale,
                                       row_scales, mask);
  }
  FATHOM_CHECK(mask == nullptr);
  const ArenaScope scope(ctx.arena);
  const Tensor divergences = new_f32(ctx, {hidden.rows()});
  head_distillation_backward(ctx, losses, divergences, d_hidden, d_head, hidden, head, targets.main, targets.teacher,
                             targets.teacher_weight, gradient_scale, row_scales);
  result.divergence_sum += sum_of_losses(ctx, divergences);
  for (int64_t t = 0; t < hidden.rows(); ++t) {
    const bool taught = targets.main.i32()[t] != kNoTarget;
    if (taught && targets.teacher.ids.i32()[t * targets.teacher.ids.cols()] != kNoTarget) ++result.taught_targets;
  }
}

double sum_of_losses(Context& ctx, Tensor losses) {
  Buffer memory;
  losses = on_host(ctx, losses, memory);
  double total = 0;
  for (int64_t t = 0; t < losses.size(); ++t) total += losses.f32()[t];
  return total;
}

std::vector<MtpStep> mtp_steps(Context& ctx, const Model& model, const Batch& batch, const Targets& targets,
                               const LossOptions& options) {
  std::vector<MtpStep> steps;
  if (options.mtp_weight <= 0) return steps;
  Buffer memory;
  const int32_t* const main = on_host(ctx, targets.main, memory).i32();
  for (MtpInput& input : make_mtp_inputs(ctx, model, batch)) {
    const size_t m = steps.size();
    const Targets of_module = mtp_targets(ctx, batch, main, input.next, static_cast<int32_t>(m) + 1);
    if (of_module.n_main == 0) break;
    steps.push_back({&model.weights.mtp[m], std::move(input), of_module});
  }
  return steps;
}

LossResult& LossResult::operator+=(const LossResult& part) {
  loss_sum += part.loss_sum;
  main_targets += part.main_targets;
  divergence_sum += part.divergence_sum;
  taught_targets += part.taught_targets;
  mtp_loss_sum += part.mtp_loss_sum;
  mtp_targets += part.mtp_targets;
  balance_loss += part.balance_loss;
  indexer += part.indexer;
  expert_load.resize(std::max(expert_load.size(), part.expert_load.size()));  // the MTP layers' rows may be in one only
  for (size_t l = 0; l < part.expert_load.size(); ++l) {
    expert_load[l].resize(part.expert_load[l].size());
    for (size_t e = 0; e < expert_load[l].size(); ++e) expert_load[l][e] += part.expert_load[l][e];
  }
  return *this;
}

int64_t count_mtp_targets(std::span<const std::vector<int32_t>> sequences, int64_t n_modules) {
  int64_t n = 0;
  for (const std::vector<int32_t>& ids : sequences) {
    for (int64_t m = 1; m <= n_modules; ++m) n += std::max<int64_t>(std::ssize(ids) - 1 - m, 0);
  }
  return n;
}

Targets make_targets(Context& ctx, const Batch& batch) {
  Targets targets{};
  std::vector<int32_t> next(batch.tokens.size(), kNoTarget);
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
    const int32_t begin = batch.offsets[s], end = batch.offsets[s + 1];
    for (int32_t t = begin; t + 1 < end; ++t) next[static_cast<size_t>(t)] = batch.tokens[static_cast<size_t>(t) + 1];
    targets.n_main += std::max(end - begin - 1, 0);
  }
  targets.main = from_host(ctx, next);
  return targets;
}

LossResult loss(Context& ctx, const Model& model, const Batch& batch, const Targets& targets,
                const LossOptions& options) {
  const ArenaScope scope(ctx.arena);
  LossResult result;
  const Tensor hidden = forward(ctx, model, batch, {.expert_load = wanted_load(model, result)});
  result.loss_sum = head_loss(ctx, model, hidden, targets);
  result.main_targets = targets.n_main;
  Tensor mtp_hidden = hidden;
  for (const MtpStep& step : mtp_steps(ctx, model, batch, targets, options)) {
    mtp_hidden =
        mtp_forward(ctx, model, *step.module, step.input, mtp_hidden, {.expert_load = wanted_load(model, result)});
    result.mtp_loss_sum += head_loss(ctx, model, mtp_hidden, step.targets);
    result.mtp_targets += step.targets.n_main;
  }
  return result;
}

Tensor target_logprobs(Context& ctx, const Model& model, const Batch& batch, const Targets& targets, Tensor entropies,
                       std::vector<Tensor>* chosen, const SamplingMask* mask) {
  const Tensor logprobs = new_f32(ctx, {batch.n_tokens()});
  const int64_t k = model.config.router.num_experts_per_tok;
  std::vector<Tensor> kept;
  if (chosen != nullptr) {
    for (const LayerWeights& layer : model.weights.layers) {
      kept.push_back(layer.moe.gate ? new_i32(ctx, {batch.n_tokens(), k}) : Tensor());
    }
    chosen->insert(chosen->end(), kept.begin(), kept.end());
  }
  const ArenaScope scope(ctx.arena);
  const LayerVisit keep = [&](int64_t l, const LayerSaved& saved) {
    if (const Tensor to = kept[static_cast<size_t>(l)]) std::copy_n(saved.moe.topk_ids.i32(), to.size(), to.i32());
  };
  const Tensor hidden = forward(ctx, model, batch, {.on_layer = chosen != nullptr ? &keep : nullptr});
  head_logprobs(ctx, logprobs, hidden, model.weights.head, targets.main, entropies, mask);
  return logprobs;
}

ScoreGradient balance_gradient(Context& ctx, const Model& model, const Batch& batch, const LossOptions& options,
                               double& loss) {
  if (options.balance_alpha <= 0) return {};
  return [&ctx, &model, &batch, options, &loss](const MoeSaved& moe) {
    const Tensor offsets = options.balance_over_batch ? whole_batch(ctx, batch) : batch.seq_offsets;
    const double scale = options.balance_scale > 0 ? options.balance_scale : per(offsets.cols() - 1);
    const Tensor d_scores = new_f32(ctx, {moe.scores.rows(), moe.scores.cols()});
    fill_zero(ctx, d_scores);
    loss +=
        sequence_balance_loss(ctx, model.config.router, d_scores, moe.scores, offsets, options.balance_alpha, scale);
    return d_scores;
  };
}

namespace {

double indexer_scale(const LossOptions& options, const Batch& batch) {
  return options.indexer_scale > 0 ? options.indexer_scale : per(batch.n_tokens());
}

// Trains each layer's indexer while what it needs of the layer is there.
LayerVisit indexer_visit(Context& ctx, const Model& model, ModelWeights& grads, const Batch& batch,
                         const LossOptions& options, IndexerLossSums& sums) {
  return [&ctx, &model, &grads, &batch, &options, &sums](int64_t l, const LayerSaved& saved) {
    const auto layer = static_cast<size_t>(l);
    train_indexer(ctx, model, model.weights.layers[layer].attention.indexer, grads.layers[layer].attention.indexer,
                  batch, saved.attention, indexer_scale(options, batch), sums);
  };
}
void train_mtp_indexer(Context& ctx, const Model& model, ModelWeights& grads, size_t m, const MtpSaved& saved,
                       const LossOptions& options, IndexerLossSums& sums) {
  train_indexer(ctx, model, model.weights.mtp[m].layer.attention.indexer, grads.mtp[m].layer.attention.indexer,
                saved.input.next, saved.layer.attention, indexer_scale(options, saved.input.next), sums);
}

// Of what stands behind the layers: d_hidden is the gradient of what the last norm gives, `hidden`.
void head_and_mtp_gradients(Context& ctx, const Model& model, ModelWeights& grads, const Batch& batch,
                            const Targets& targets, const LossOptions& options, Tensor hidden, Tensor d_hidden,
                            LossResult& result) {
  const ArenaScope scope(ctx.arena);
  const Tensor losses = new_f32(ctx, {batch.n_tokens()});
  double main_scale = options.main_scale > 0 ? options.main_scale : per(targets.n_main);
  Tensor weights;
  if (options.target_weights != nullptr) {
    main_scale = 1;
    weights = new_f32(ctx, {batch.n_tokens()});
    const Tensor logprobs = new_f32(ctx, {batch.n_tokens()});
    head_logprobs(ctx, logprobs, hidden, model.weights.head, targets.main, {}, options.mask);
    const auto n = static_cast<size_t>(batch.n_tokens());
    (*options.target_weights)(std::span(logprobs.f32(), n), std::span(weights.f32(), n));
  }
  main_loss_backward(ctx, losses, d_hidden, grads.head, hidden, model.weights.head, targets, main_scale, weights,
                     options.mask, result);
  result.loss_sum = sum_of_losses(ctx, losses);
  result.main_targets = targets.n_main;

  const std::vector<MtpStep> steps = mtp_steps(ctx, model, batch, targets, options);
  for (const MtpStep& step : steps) result.mtp_targets += step.targets.n_main;
  const double mtp_scale = options.mtp_weight * (options.mtp_scale > 0 ? options.mtp_scale : per(result.mtp_targets));
  std::vector<MtpSaved> mtp(steps.size());
  std::vector<Tensor> d_hiddens = {d_hidden};  // of the trunk's, then of each module's output
  for (size_t m = 0; m < steps.size(); ++m) {
    const Tensor mtp_hidden =
        mtp_forward(ctx, model, *steps[m].module, steps[m].input, m == 0 ? hidden : mtp[m - 1].hidden,
                    {.saved = &mtp[m], .expert_load = &result.expert_load});
    if (options.train_indexers) train_mtp_indexer(ctx, model, grads, m, mtp[m], options, result.indexer);
    const Tensor mtp_losses = new_f32(ctx, {mtp_hidden.rows()});
    d_hiddens.push_back(new_f32(ctx, {mtp_hidden.rows(), mtp_hidden.cols()}));
    head_cross_entropy_backward(ctx, mtp_losses, d_hiddens.back(), grads.head, mtp_hidden, model.weights.head,
                                steps[m].targets.main, static_cast<float>(mtp_scale));
    result.mtp_loss_sum += sum_of_losses(ctx, mtp_losses);
  }
  for (size_t m = steps.size(); m-- > 0;) {
    MtpGrads inner;
    mtp_backward_input(ctx, model, *steps[m].module, mtp[m], d_hiddens[m], d_hiddens[m + 1], inner,
                       balance_gradient(ctx, model, steps[m].input.next, options, result.balance_loss));
    mtp_backward_weight(ctx, model, grads.mtp[m], grads.embed, mtp[m], inner);
  }
}

// The losses, of which none flows back, and the indexers' gradients.
LossResult indexer_gradients(Context& ctx, const Model& model, ModelWeights& grads, const Batch& batch,
                             const Targets& targets, const LossOptions& options) {
  const ArenaScope scope(ctx.arena);
  LossResult result;
  const LayerVisit visit = indexer_visit(ctx, model, grads, batch, options, result.indexer);
  Tensor hidden = forward(ctx, model, batch, {.expert_load = &result.expert_load, .on_layer = &visit});
  result.loss_sum = head_loss(ctx, model, hidden, targets);
  result.main_targets = targets.n_main;
  const std::vector<MtpStep> steps = mtp_steps(ctx, model, batch, targets, options);
  for (size_t m = 0; m < steps.size(); ++m) {
    MtpSaved saved;
    hidden = mtp_forward(ctx, model, *steps[m].module, steps[m].input, hidden,
                         {.saved = &saved, .expert_load = &result.expert_load});
    train_mtp_indexer(ctx, model, grads, m, saved, options, result.indexer);
    result.mtp_loss_sum += head_loss(ctx, model, hidden, steps[m].targets);
    result.mtp_targets += steps[m].targets.n_main;
  }
  return result;
}

}  // namespace

LossResult loss_and_gradients(Context& ctx, const Model& model, ModelWeights& grads, const Batch& batch,
                              const Targets& targets, const LossOptions& options) {
  if (options.indexers_alone) return indexer_gradients(ctx, model, grads, batch, targets, options);
  const ArenaScope scope(ctx.arena);
  LossResult result;
  ForwardSaved saved;
  const LayerVisit visit = indexer_visit(ctx, model, grads, batch, options, result.indexer);
  const Tensor hidden = forward(ctx, model, batch,
                                {.saved = &saved,
                                 .recompute = options.recompute,
                                 .scratch = options.scratch,
                                 .expert_load = &result.expert_load,
                                 .on_layer = options.train_indexers ? &visit : nullptr});
  const Tensor d_hidden = new_f32(ctx, {hidden.rows(), hidden.cols()});
  head_and_mtp_gradients(ctx, model, grads, batch, targets, options, hidden, d_hidden, result);
  backward(ctx, model, grads, batch, saved, d_hidden,
           balance_gradient(ctx, model, batch, options, result.balance_loss));
  return result;
}

}  // namespace fathom
