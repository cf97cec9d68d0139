// The training objective and its gradient over one packed batch: next-token cross-entropy, plus mtp_weight times the
// MTP loss (V3 equations 24-25, but for the weight of a module: the mean is over the targets of all modules together,
// of which deeper ones have a token less a sequence each), plus a balance loss when asked for.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "model/backward.h"
#include "model/indexer.h"
#include "ops/cross_entropy.h"
#include "ops/distillation.h"

namespace fathom {

// What each target counts in the loss, from its log probability (0 where there is none): weights[t] = -dL/dlogprobs[t].
// Both [tokens].
using TargetWeights = std::function<void(std::span<const float> logprobs, std::span<float> weights)>;

struct LossOptions {
  double mtp_weight = 0;     // lambda; 0 leaves the MTP modules out
  double balance_alpha = 0;  // of the balance loss
  // Over all tokens of the batch at once, not over each sequence (V3 section 4.5.3): the classic auxiliary loss.
  bool balance_over_batch = false;
  // Weights of the sums in the gradient: mean losses over a step that is cut in micro-batches are sums times 1 /
  // (targets of the whole step). 0: one over the targets of this batch.
  double main_scale = 0, mtp_scale = 0, balance_scale = 0;
  // In place of main_scale: each target's own. loss_sum stays the sum of cross-entropies.
  const TargetWeights* target_weights = nullptr;
  const SamplingMask* mask = nullptr;  // by what distribution log probabilities of targets are
  // Sparse attention's stages (V3.2 section 2.1.1). What trains: the indexers by their own loss and all else by the
  // losses above; without train_indexers they stay as they are. In the first stage they train alone (indexers_alone),
  // beside dense attention (Model::dense_attention).
  bool train_indexers = false, indexers_alone = false;
  double indexer_scale = 0;               // of the sum over tokens; 0: one over the tokens of this batch
  Recompute recompute = Recompute::none;  // as ForwardOptions has it
  Arena* scratch = nullptr;
};

struct LossResult {
  double loss_sum = 0;  // over main_targets, natural log
  int64_t main_targets = 0;
  double divergence_sum = 0;  // from a teacher (ops/distillation.h), over taught_targets
  int64_t taught_targets = 0;
  double mtp_loss_sum = 0;  // of all modules
  int64_t mtp_targets = 0;
  double balance_loss = 0;  // summed over sequences and layers, alpha included
  IndexerLossSums indexer;  // over all layers, the MTP modules' among them
  ExpertLoad expert_load;   // the MTP layers' rows last

  LossResult& operator+=(const LossResult& part);  // of other targets of the same step
  double loss() const { return main_targets > 0 ? loss_sum / static_cast<double>(main_targets) : 0; }
  double divergence() const { return taught_targets > 0 ? divergence_sum / static_cast<double>(taught_targets) : 0; }
  double mtp_loss() const { return mtp_targets > 0 ? mtp_loss_sum / static_cast<double>(mtp_targets) : 0; }
};

// Targets of a packed batch: of token i of a sequence token i+1; the last has none.
struct Targets {
  Tensor main;  // [tokens] i32, kNoTarget where there is none
  int64_t n_main;
  // What a teacher says of the main ones, if anything: (1 - teacher_weight) of the cross-entropy and teacher_weight of
  // the divergence from it are then the loss. MTP's is not taught.
  TeacherRows teacher{};
  double teacher_weight = 0;
};
Targets make_targets(Context& ctx, const Batch& batch);
// Those of so many MTP modules, where the trunk has all of its own.
int64_t count_mtp_targets(std::span<const std::vector<int32_t>> sequences, int64_t n_modules);

// What the MTP modules read one after the other, and what of it they predict (of row i, as of the trunk, what row i+1
// reads, unless `targets`, the trunk's, leave that token out), as long as there is something to predict; nothing where
// options leave them out. Memory from ctx.arena.
struct MtpStep {
  const MtpWeights* module;
  MtpInput input;
  Targets targets;
};
std::vector<MtpStep> mtp_steps(Context& ctx, const Model& model, const Batch& batch, const Targets& targets,
                               const LossOptions& options);
// Of the losses of tokens, [tokens].
double sum_of_losses(Context& ctx, Tensor losses);

// The main loss of what the head makes of `hidden`, from a teacher's distribution too where targets have one, and its
// gradients as head_cross_entropy_backward has them: losses and d_hidden overwritten, d_head added to, divergences
// added to `result`.
void main_loss_backward(Context& ctx, Tensor losses, Tensor d_hidden, Tensor d_head, Tensor hidden, Tensor head,
                        const Targets& targets, double scale, Tensor row_scales, const SamplingMask* mask,
                        LossResult& result);

// The loss alone.
LossResult loss(Context& ctx, const Model& model, const Batch& batch, const Targets& targets,
                const LossOptions& options);

// What the balance loss adds to the gradient of a batch's scores, and to `loss`; nothing without one. For the time that
// ctx, model, batch and loss live.
ScoreGradient balance_gradient(Context& ctx, const Model& model, const Batch& batch, const LossOptions& options,
                               double& loss);

// Log probabilities of the targets, [tokens] f32 (arena), 0 where there is none: those that generation tells, in the
// same bits for tokens that batch.prompts calls generated. entropies (optional): as head_logprobs has it. chosen: when
// given, appended the experts of every layer, as Batch has them (arena). mask: as head_logprobs has it.
Tensor target_logprobs(Context& ctx, const Model& model, const Batch& batch, const Targets& targets,
                       Tensor entropies = {}, std::vector<Tensor>* chosen = nullptr,
                       const SamplingMask* mask = nullptr);

// The loss, and grads += its gradient.
LossResult loss_and_gradients(Context& ctx, const Model& model, ModelWeights& grads, const Batch& batch,
                              const Targets& targets, const LossOptions& options);

}  // namespace fathom
